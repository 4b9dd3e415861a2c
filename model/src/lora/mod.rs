//! Provides low-rank adapters: y += scale (x A^T) B^T (Hu et al. 2021, "LoRA"), initialised and named as PEFT does.

mod config;
mod pattern;
mod unused;

use crate::Result;
use candle_core::{DType, Device, Tensor, Var};
pub use config::{LORA_RANK_MAX, LORA_TARGETS, LoraConfig, LoraLayers, LoraModules};
pub use pattern::LoraPattern;
pub use unused::Unused;

/// One adapter beside a linear layer.
#[derive(Clone, Debug)]
pub struct Lora {
    /// A [rank, in], f32.
    pub a: Var,
    /// B [out, rank], f32.
    pub b: Var,
    /// The factor on the update, alpha / rank or alpha / sqrt(rank).
    pub scale: f64,
}

impl Lora {
    /// A fresh adapter for the layer `prefix`: A uniform in +-1/sqrt(in), B zero, so that the model is unchanged at first.
    ///
    /// PEFT's `kaiming_uniform_(a=sqrt(5))` has the bound sqrt(6 / ((1 + 5) in)) = 1/sqrt(in).
    ///
    /// # Errors
    /// When the device has no room, or an expression of `config` cannot be matched in time.
    pub fn new(
        prefix: &str,
        in_features: usize,
        out_features: usize,
        config: &LoraConfig,
        device: &Device,
    ) -> Result<Self> {
        let rank = config.rank_of(prefix)?;
        let bound = 1.0 / (in_features as f64).sqrt();
        let values = uniform(config.seed, &a_name(prefix), rank * in_features, bound);
        let a = Tensor::from_vec(values, (rank, in_features), device)?;
        let b = Tensor::zeros((out_features, rank), DType::F32, device)?;
        Ok(Self {
            a: Var::from_tensor(&a)?,
            b: Var::from_tensor(&b)?,
            scale: config.scale_of(prefix)?,
        })
    }

    /// A and B under PEFT's names.
    pub fn parameters(&self, prefix: &str) -> [(String, Var); 2] {
        [
            (a_name(prefix), self.a.clone()),
            (b_name(prefix), self.b.clone()),
        ]
    }
}

/// PEFT's name of A for the layer `prefix`.
fn a_name(prefix: &str) -> String {
    format!("base_model.model.{prefix}.lora_A.weight")
}

/// PEFT's name of B for the layer `prefix`.
fn b_name(prefix: &str) -> String {
    format!("base_model.model.{prefix}.lora_B.weight")
}

/// Uniform values in [-bound, bound) that depend on the seed and the name alone: not on the order in which layers are built,
/// nor on a generator that may change between versions of a library. BLAKE3's output stream, 24 bits a value.
fn uniform(seed: u64, name: &str, count: usize, bound: f64) -> Vec<f32> {
    let mut stream = blake3::Hasher::new_derive_key("ot-distill LoRA initialisation v1")
        .update(&seed.to_le_bytes())
        .update(name.as_bytes())
        .finalize_xof();
    let mut bytes = vec![0u8; count * size_of::<u32>()];
    stream.fill(&mut bytes);
    let (words, _) = bytes.as_chunks::<{ size_of::<u32>() }>();
    words
        .iter()
        .map(|word| {
            let unit = f64::from(u32::from_le_bytes(*word) >> 8) / f64::from(1u32 << 24);
            ((2.0 * unit - 1.0) * bound) as f32
        })
        .collect()
}
