//! Provides tiny random models on disk, for the tests of this crate and of those above it.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::ops::Ops;
use crate::ops::cpu::Cpu;
use crate::{Architecture, Error, Gradients, Linear, ModelConfig, Result};

/// The shape of a tiny model.
#[derive(Debug, Clone)]
pub struct TinyModel {
    /// Whose tensor names, biases and config it gets.
    pub architecture: Architecture,
    /// Rows of embedding and head.
    pub vocab_size: usize,
    /// Width d.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Type of the stored weights.
    pub dtype: DType,
    /// Further settings of `config.json`, such as `sliding_window`.
    pub settings: Vec<(&'static str, Value)>,
}

impl TinyModel {
    /// Two layers, grouped queries, an untied head and biases, as Qwen2.5-7B has them.
    pub fn qwen2() -> Self {
        Self {
            architecture: Architecture::Qwen2,
            vocab_size: 96,
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            tie_word_embeddings: false,
            rope_theta: 1e6,
            dtype: DType::F32,
            settings: Vec::new(),
        }
    }

    /// The same with norms of heads that are wider than the stream's share, as Qwen3 has them, and without biases.
    pub fn qwen3() -> Self {
        Self {
            architecture: Architecture::Qwen3,
            settings: vec![("head_dim", json!(32))],
            ..Self::qwen2()
        }
    }

    /// Without biases, and with attention to a window of 9 positions, as the first Mistral has one of 4096.
    pub fn mistral() -> Self {
        Self {
            architecture: Architecture::Mistral,
            settings: vec![("sliding_window", json!(9))],
            ..Self::qwen2()
        }
    }

    /// The same without biases and with a tied head, as SmolLM2 has them.
    pub fn llama() -> Self {
        Self {
            architecture: Architecture::Llama,
            tie_word_embeddings: true,
            rope_theta: 1e5,
            ..Self::qwen2()
        }
    }

    /// Every second layer turns nothing by its position.
    pub fn smollm3() -> Self {
        Self {
            architecture: Architecture::SmolLm3,
            settings: vec![("no_rope_layer_interval", json!(2))],
            ..Self::llama()
        }
    }

    /// Four experts in every second layer, two of them for a token: Qwen3 outside the decoder.
    pub fn qwen3_moe() -> Self {
        Self {
            architecture: Architecture::Qwen3Moe,
            settings: vec![
                ("head_dim", json!(32)),
                ("num_experts", json!(4)),
                ("num_experts_per_tok", json!(2)),
                ("moe_intermediate_size", json!(48)),
                ("norm_topk_prob", json!(true)),
                ("decoder_sparse_step", json!(2)),
            ],
            ..Self::qwen2()
        }
    }

    fn config(&self) -> Value {
        let dtype = match self.dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        };
        let mut config = json!({
            "architectures": [self.architecture.class()],
            "model_type": self.architecture.name(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": dtype,
        });
        for (name, value) in &self.settings {
            config[name] = value.clone();
        }
        config
    }
}

/// Writes `config.json` and `model.safetensors` of a random model to `dir`, which must exist. The
/// same seed gives the same model.
///
/// # Errors
/// When a file cannot be written.
pub fn write_tiny_model(dir: &Path, model: &TinyModel, seed: u64) -> Result<()> {
    let path = dir.join("config.json");
    let json = format!("{:#}\n", model.config());
    std::fs::write(&path, &json).map_err(|source| Error::io(&path, source))?;
    let config = ModelConfig::parse_teacher(json.as_bytes(), &path)?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut tensors = HashMap::new();
    for (name, shape) in config.parameter_shapes() {
        let tensor = random_tensor(&mut random, &name, &shape)?.to_dtype(model.dtype)?;
        tensors.insert(name, tensor);
    }
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors"))?;
    Ok(())
}

/// Norms near one, everything else uniform around zero; matrices so that activations keep their size.
fn random_tensor(random: &mut StdRng, name: &str, shape: &[usize]) -> Result<Tensor> {
    let (middle, spread) = match shape {
        [_] if name.ends_with("norm.weight") => (1.0, 0.3),
        [_, columns] => (0.0, (3.0 / *columns as f32).sqrt()),
        _ => (0.0, 0.3),
    };
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count)
        .map(|_| middle + random.random_range(-spread..spread))
        .collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// `x W^T + bias + scale (x A^T) B^T` as a layer computes it on the CPU, and dL/dx of `grad` where that is given.
///
/// # Shapes
/// x [N, in], grad [N, out] -> [N, out] and [N, in]
///
/// # Errors
/// Tensors on another device.
pub fn linear(
    linear: &Linear,
    x: &Tensor,
    grad: Option<&Tensor>,
) -> Result<(Tensor, Option<Tensor>)> {
    let mut ops = Cpu::new(DType::F32);
    let rows = x.dim(0)?;
    let x = ops.array(x)?;
    let mut out = vec![0f32; rows * linear.out_features()];
    let low = ops.add_linear(linear, &x, &mut out)?;
    let mut to_x = None;
    if let Some(grad) = grad {
        let grad = ops.array(grad)?;
        let gradients = &mut Gradients::new();
        let grad = ops.add_linear_gradient(linear, &x, Some(low), &grad, gradients)?;
        to_x = Some(ops.tensor(&grad, &[rows, linear.in_features()])?);
    }
    Ok((ops.tensor(&out, &[rows, linear.out_features()])?, to_x))
}
