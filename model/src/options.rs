//! Provides the options that decide how a checkpoint becomes a model: element type, device, frozen or trainable, LoRA.

use crate::{Error, Result};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

/// Largest LoRA rank accepted; beyond it an adapter is larger than the matrices it adapts.
pub const LORA_RANK_MAX: usize = 4096;

/// How a checkpoint is turned into a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Element type of activations and of dense weights: `F32`, `BF16` or `F16`. Trainable parameters are always `F32`.
    pub dtype: DType,
    /// Where the weights live.
    pub device: Device,
    /// What happens to the linear layers' weights.
    pub base: Base,
    /// Adapters to add to the linear layers; `None` for a plain model.
    pub lora: Option<LoraConfig>,
}

impl LoadOptions {
    /// A frozen f32 model on the CPU, weights as the checkpoint stores them: what the reference tests use.
    pub fn reference() -> Self {
        Self {
            dtype: DType::F32,
            device: Device::Cpu,
            base: Base::AsStored,
            lora: None,
        }
    }

    /// Refuses combinations that cannot work.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the option at fault.
    pub fn validate(&self) -> Result<()> {
        if !matches!(self.dtype, DType::F32 | DType::BF16 | DType::F16) {
            return Err(Error::InvalidOption {
                option: "dtype",
                message: format!(
                    "{:?} is no activation type; use f32, bf16 or f16",
                    self.dtype
                ),
            });
        }
        if self.base == Base::Trainable && self.lora.is_some() {
            return Err(Error::InvalidOption {
                option: "base",
                message: "full-parameter training and LoRA exclude each other; drop one of them"
                    .into(),
            });
        }
        self.lora.as_ref().map_or(Ok(()), LoraConfig::validate)
    }
}

/// What becomes of a linear layer's weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// Frozen as the checkpoint has it: bitsandbytes NF4 stays packed, dense weights become `LoadOptions::dtype`.
    #[default]
    AsStored,
    /// Frozen; dense weights are quantised to double-quantised NF4 while loading, NF4 weights stay as they are.
    QuantizeNf4,
    /// Every weight is an f32 `Var`; NF4 checkpoints are refused because a 4-bit matrix cannot be trained.
    Trainable,
}

/// Low-rank adapters (LoRA, Hu et al. 2021), laid out as Hugging Face PEFT does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank r of the update B A.
    pub rank: usize,
    /// Numerator of the scale: alpha / r, or alpha / sqrt(r) with `rs_lora`.
    pub alpha: f64,
    /// Last name components of the adapted layers, such as `q_proj`.
    pub targets: Vec<String>,
    /// Together with the parameter's name this fixes the initial A bit for bit.
    pub seed: u64,
    /// Rank-stabilised scale (Kalajdzievski 2023).
    pub rs_lora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let targets = [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ];
        Self {
            rank: 16,
            alpha: 32.0,
            targets: targets.map(String::from).to_vec(),
            seed: 0,
            rs_lora: false,
        }
    }
}

impl LoraConfig {
    /// The factor on B A x.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rs_lora { rank.sqrt() } else { rank }
    }

    /// Whether the layer `prefix` (such as `model.layers.0.mlp.up_proj`) gets an adapter: one of the targets is the
    /// whole name or its last components, PEFT's rule for lists.
    pub fn adapts(&self, prefix: &str) -> bool {
        self.targets.iter().any(|target| {
            prefix
                .strip_suffix(target.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }

    /// Refuses values that make no adapter.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the option at fault.
    pub fn validate(&self) -> Result<()> {
        let fault = |option, message: String| Err(Error::InvalidOption { option, message });
        if self.rank == 0 || self.rank > LORA_RANK_MAX {
            return fault(
                "lora.rank",
                format!("{} is outside 1..={LORA_RANK_MAX}", self.rank),
            );
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return fault(
                "lora.alpha",
                format!("{} is not a positive number", self.alpha),
            );
        }
        if self.targets.is_empty() || self.targets.iter().any(String::is_empty) {
            return fault(
                "lora.targets",
                "name at least one layer, such as q_proj; empty names match nothing".into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_match_whole_name_components() {
        let config = LoraConfig {
            targets: vec!["q_proj".into(), "mlp.up_proj".into()],
            ..LoraConfig::default()
        };
        assert!(config.adapts("model.layers.0.self_attn.q_proj"));
        assert!(config.adapts("model.layers.0.mlp.up_proj"));
        assert!(config.adapts("q_proj"));
        assert!(!config.adapts("model.layers.0.self_attn.eq_proj"));
        assert!(!config.adapts("model.layers.0.mlp.down_proj"));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let refused = |config: LoraConfig| config.validate().unwrap_err().to_string();
        let rank = LoraConfig {
            rank: 0,
            ..LoraConfig::default()
        };
        assert!(refused(rank).contains("lora.rank"));
        let alpha = LoraConfig {
            alpha: f64::NAN,
            ..LoraConfig::default()
        };
        assert!(refused(alpha).contains("lora.alpha"));
        let both = LoadOptions {
            base: Base::Trainable,
            lora: Some(LoraConfig::default()),
            ..LoadOptions::reference()
        };
        assert!(both.validate().unwrap_err().to_string().contains("base"));
    }
}
