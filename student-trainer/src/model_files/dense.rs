//! Provides tensors and `config.json` of a checkpoint in plain floating-point numbers.

use candle_core::{DType, Tensor, WithDType};
use distill_model::StoredTensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Result;

/// A floating-point type that checkpoints are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// bfloat16.
    #[default]
    Bf16,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl FloatType {
    /// PyTorch's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }

    /// candle's name for it.
    pub fn dtype(self) -> DType {
        match self {
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
        }
    }

    /// Of candle's types the one that is written; f32 for all that are no half precision.
    pub(crate) fn of(dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self::Bf16,
            DType::F16 => Self::F16,
            _ => Self::F32,
        }
    }

    /// The tensor as a file holds it, rounded to nearest.
    pub(crate) fn store(self, name: &str, tensor: &Tensor) -> Result<StoredTensor> {
        let flat = tensor.to_dtype(self.dtype())?.flatten_all()?;
        let (dtype, bytes) = match self {
            Self::Bf16 => (
                safetensors::Dtype::BF16,
                bytes::<half::bf16, 2>(&flat, half::bf16::to_le_bytes)?,
            ),
            Self::F16 => (
                safetensors::Dtype::F16,
                bytes::<half::f16, 2>(&flat, half::f16::to_le_bytes)?,
            ),
            Self::F32 => (
                safetensors::Dtype::F32,
                bytes::<f32, 4>(&flat, f32::to_le_bytes)?,
            ),
        };
        Ok(StoredTensor {
            name: name.to_owned(),
            dtype,
            shape: tensor.dims().to_vec(),
            bytes,
        })
    }

    /// Makes the configuration of any checkpoint that of a plain one in this type.
    pub(crate) fn set_in(self, config: &mut Map<String, Value>) {
        config.shift_remove("quantization_config");
        // What transformers 5 calls torch_dtype; both know the latter.
        config.shift_remove("dtype");
        config.insert("torch_dtype".into(), self.name().into());
    }
}

fn bytes<T: WithDType, const N: usize>(
    flat: &Tensor,
    to_bytes: fn(T) -> [u8; N],
) -> Result<Vec<u8>> {
    let values: Vec<T> = flat.to_vec1()?;
    Ok(values.into_iter().flat_map(to_bytes).collect())
}
