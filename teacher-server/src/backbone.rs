/*! Provides the models that a teacher can be: the decoder, and families outside its shape, which candle-transformers runs.

```text
 config.json ──> ModelConfig ─┬─ covered by it ─> distill_model::Decoder ─┐
 *.safetensors ─> Weights ────┤                                           ├─> Backbone ── hidden_states(ids) ─> [B, T, D]
                              └─ outside ───────> qwen3_moe::Qwen3Moe ────┘           └── head_matrix() ──────> [V, D]
                                                    weights by checkpoint.rs
```
*/

mod checkpoint;
mod qwen3_moe;

use candle_core::{DType, Device, Tensor};
use distill_model::{
    Architecture, Decoder, Error, LoadOptions, ModelConfig, Nf4Matrix, Result, TokenMatrix, Weights,
};
use qwen3_moe::Qwen3Moe;

/// Most positions of a family outside the decoder: candle-transformers tabulates the rotary angles of all of them.
const TABULATED_POSITIONS_MAX: usize = 1 << 20;
/// Copies of attention's scores that exist at a time in candle-transformers, on a card.
const SCORE_COPIES: u64 = 2;

/// A causal language model up to its hidden states, with the head's matrix beside it.
pub trait Backbone: Send + Sync {
    /// Its shape.
    fn config(&self) -> &ModelConfig;

    /// Where the weights are.
    fn device(&self) -> &Device;

    /// The rows of the head.
    ///
    /// # Shapes
    /// [V, D]
    fn head_matrix(&self) -> &TokenMatrix;

    /// Memory that the weights take.
    fn weight_bytes(&self) -> usize;

    /// The decoder, which can answer prompts; `None` of a family outside its shape.
    fn decoder(&self) -> Option<&Decoder> {
        None
    }

    /// Hidden states of all positions after the final norm. Right padding is exact: a position sees nothing after it.
    ///
    /// # Shapes
    /// ids [B, T] u32 -> [B, T, D]
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or T is zero or more than the model's positions.
    fn hidden_states(&self, ids: &Tensor) -> Result<Tensor>;

    /// As [`hidden_states`](Self::hidden_states), and the residual stream after some layers, 0 for the embeddings.
    ///
    /// # Shapes
    /// ids [B, T] u32 -> ([B, T, D], [B, T, D] f32 a layer)
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states); where there is no such layer, or it cannot be had.
    fn hidden_states_and_layers(
        &self,
        _ids: &Tensor,
        layers: &[usize],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let name = self.config().model_type.name();
        Err(Error::Unsupported {
            what: format!("the output of layers {layers:?} of {name}"),
            remedy: "take the hidden states after the last layer".into(),
        })
    }
}

impl Backbone for Decoder {
    fn config(&self) -> &ModelConfig {
        self.config()
    }

    fn device(&self) -> &Device {
        self.device()
    }

    fn head_matrix(&self) -> &TokenMatrix {
        self.head_matrix()
    }

    fn weight_bytes(&self) -> usize {
        self.weight_bytes()
    }

    fn decoder(&self) -> Option<&Decoder> {
        Some(self)
    }

    fn hidden_states(&self, ids: &Tensor) -> Result<Tensor> {
        self.hidden_states(ids)
    }

    fn hidden_states_and_layers(
        &self,
        ids: &Tensor,
        layers: &[usize],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        self.hidden_states_and_layers(ids, layers)
    }
}

/// Refuses what a family outside the decoder does not do, before any weight is read.
///
/// # Errors
/// `Unsupported`, by name.
pub(crate) fn check(model: &ModelConfig, weights: &Weights) -> Result<()> {
    let name = model.model_type.name();
    let refuse = |what: String, remedy: &str| {
        Err(Error::Unsupported {
            what,
            remedy: remedy.into(),
        })
    };
    if !model.model_type.is_outside() {
        return Ok(());
    }
    if Nf4Matrix::any_stored(weights) {
        return refuse(
            format!(
                "{name} in bitsandbytes' four bits ({})",
                weights.path().display()
            ),
            "take the model's own checkpoint in bf16",
        );
    }
    let positions = model.max_position_embeddings;
    if positions > TABULATED_POSITIONS_MAX {
        return refuse(
            format!("{name} with max_position_embeddings = {positions}"),
            "set it to 1048576 or less in config.json, and no lower than --seq-len",
        );
    }
    Ok(())
}

/// Reads the weights of a model that [`check`] lets through.
///
/// # Errors
/// When an option is invalid, a tensor is missing or has another shape than `model` says, or a card refuses the kernels.
pub(crate) fn load(
    model: &ModelConfig,
    weights: &Weights,
    options: &LoadOptions,
) -> Result<Box<dyn Backbone>> {
    check(model, weights)?;
    let loaded: Box<dyn Backbone> = match model.model_type {
        Architecture::Qwen3Moe => Box::new(Qwen3Moe::load(model, weights, options)?),
        _ => Box::new(Decoder::load(model, weights, options)?),
    };
    distill_program::memory::give_back();
    Ok(loaded)
}

/// Bytes of attention's scores, [B, H, T, T], beside other activations. The decoder forms them a block at a time, and so
/// does candle-transformers on the CPU, beside a mask [T, T].
pub(crate) fn score_bytes(
    model: &ModelConfig,
    (batch, tokens): (usize, usize),
    dtype: DType,
    device: &Device,
) -> u64 {
    let pairs = (tokens as u64).saturating_mul(tokens as u64);
    let heads = (batch * model.num_attention_heads) as u64;
    let f32_bytes = DType::F32.size_in_bytes() as u64;
    match (model.model_type.is_outside(), device) {
        (false, _) => 0,
        (true, Device::Cpu) => pairs.saturating_mul(2 * f32_bytes),
        (true, _) => pairs.saturating_mul(SCORE_COPIES * heads * dtype.size_in_bytes() as u64),
    }
}

#[cfg(test)]
mod tests;
