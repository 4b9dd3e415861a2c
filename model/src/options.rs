//! Provides the options that decide how a checkpoint becomes a model: element type, device, frozen or trainable, LoRA.

use crate::{Error, LoraConfig, Result};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_parameter_training_with_adapters_is_refused() {
        let both = LoadOptions {
            base: Base::Trainable,
            lora: Some(LoraConfig::default()),
            ..LoadOptions::reference()
        };
        assert!(both.validate().unwrap_err().to_string().contains("base"));
    }
}
