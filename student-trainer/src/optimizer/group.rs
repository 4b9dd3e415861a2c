//! Provides the groups of parameters: which learning rate a parameter has, whether it decays, and how its moments are kept.

use candle_core::Var;

use super::OptimizerKind;

/// Learning rates of groups, as shares of the schedule's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRateRatios {
    /// Of the B matrices of LoRA adapters (LoRA+, Hayou et al. 2024: above 1, often 16).
    pub lora_b: f64,
    /// Of the embeddings and the head, when a whole model is trained.
    pub embedding: f64,
}

impl Default for LearningRateRatios {
    fn default() -> Self {
        Self {
            lora_b: 1.0,
            embedding: 1.0,
        }
    }
}

impl LearningRateRatios {
    /// The share of the parameter `name`.
    pub(super) fn of(&self, name: &str) -> f64 {
        if name.ends_with(".lora_B.weight") {
            self.lora_b
        } else if is_embedding(name) || name.ends_with("lm_head.weight") {
            self.embedding
        } else {
            1.0
        }
    }
}

/// Elements from which on moments are kept in 8 bits: bitsandbytes' `min_8bit_size`.
pub const EIGHT_BIT_SIZE_MIN: usize = 4096;

/// Whether the moments of a parameter are kept in 8 bits. Those of embeddings never are, whose rows have gradients of very
/// different sizes (Dettmers et al., "8-bit optimizers via block-wise quantization", and transformers' trainer).
pub(super) fn in_8_bits(kind: OptimizerKind, name: &str, parameter: &Var) -> bool {
    let large = parameter.elem_count() >= EIGHT_BIT_SIZE_MIN;
    kind == OptimizerKind::AdamW8bit && large && !is_embedding(name)
}

fn is_embedding(name: &str) -> bool {
    name.ends_with("embed_tokens.weight")
}

/// Matrices decay; biases and the weights of norms, of one dimension, are left alone.
pub(super) fn decays(parameter: &Var) -> bool {
    parameter.dims().len() > 1
}
