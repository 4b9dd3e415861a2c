//! Provides one model parameter, frozen or trainable, read from a checkpoint.

use crate::{Base, LoadOptions, Result, Weights};
use candle_core::{DType, Tensor, Var};

/// A tensor of the model that is not a linear layer's weight: a bias, a norm's weight, an embedding.
#[derive(Clone, Debug)]
pub enum Parameter {
    /// Not trained; `LoadOptions::dtype`.
    Frozen(Tensor),
    /// Trained; always f32, and cast to the activations' type where it is used.
    Trainable(Var),
}

impl Parameter {
    /// Reads `name`; trainable when `options.base` is [`Base::Trainable`].
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn load(weights: &Weights, name: &str, options: &LoadOptions) -> Result<Self> {
        if options.base == Base::Trainable {
            let value = weights.tensor(name, DType::F32, &options.device)?;
            return Ok(Self::Trainable(Var::from_tensor(&value)?));
        }
        let value = weights.tensor(name, options.dtype, &options.device)?;
        Ok(Self::Frozen(value))
    }

    /// The value; a gradient flows into it when it is trainable.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Self::Frozen(tensor) => tensor,
            Self::Trainable(var) => var.as_tensor(),
        }
    }

    /// Memory taken, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let tensor = self.tensor();
        tensor.elem_count() * tensor.dtype().size_in_bytes()
    }

    /// The variable, when it is trainable.
    pub fn var(&self) -> Option<&Var> {
        match self {
            Self::Frozen(_) => None,
            Self::Trainable(var) => Some(var),
        }
    }
}
