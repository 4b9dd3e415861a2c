//! Provides a teacher that is brought to the device again and again, from the mapped files that the system keeps in memory.

use std::sync::Arc;

use candle_core::Tensor;
use distill_model::{ModelConfig, Nf4Matrix, Weights};

use super::{Opened, load_teacher};
use crate::{
    Result,
    config::Config,
    forward::{Capture, Teacher},
    lease::HostMemory,
    production::{Forward, Reload, Swap},
};

/// Bytes for activations, scratch space and the allocator beside weights and logits: a batch of long sequences takes some
/// hundred megabytes.
const WORKING_BYTES: u64 = 512 << 20;
/// Copies of a chunk of logits in f32 that exist at a time.
const LOGIT_COPIES: u64 = 2;

/// What it takes to bring the teacher to the device.
pub(super) struct Swapped {
    config: Config,
    model: ModelConfig,
    weights: Arc<Weights>,
    vocab_size: u32,
    projection: Option<Tensor>,
}

impl Swapped {
    /// Checks what can be checked without the weights.
    ///
    /// # Errors
    /// As [`Capture::check`].
    pub fn new(config: &Config, opened: &Opened) -> Result<Self> {
        let vocab_size = opened.tokenizer.size();
        Capture::new(config).check(&opened.model, vocab_size)?;
        Ok(Self {
            config: config.clone(),
            model: opened.model.clone(),
            weights: opened.weights.clone(),
            vocab_size,
            projection: None,
        })
    }

    /// Keeps the coordinates `h projection` of every hidden state.
    pub fn with_projection(self, projection: Tensor) -> Self {
        Self {
            projection: Some(projection),
            ..self
        }
    }

    /// As production takes it.
    pub fn into_swap(self) -> Swap {
        Swap {
            source: Box::new(self),
            memory: Box::new(HostMemory),
        }
    }

    fn teacher(&self) -> Result<Teacher> {
        let teacher = load_teacher(&self.config, &self.model, &self.weights, self.vocab_size)?;
        Ok(match &self.projection {
            Some(projection) => teacher.with_projection(projection.clone()),
            None => teacher,
        })
    }
}

impl Reload for Swapped {
    fn device_bytes(&self) -> u64 {
        let element = self.config.dtype.dtype().size_in_bytes();
        let logits = self.config.chunk_rows as u64 * u64::from(self.vocab_size) * 4;
        weight_bytes(&self.weights, element) + LOGIT_COPIES * logits + WORKING_BYTES
    }

    fn load(&self) -> Result<Box<dyn Forward>> {
        Ok(Box::new(self.teacher()?))
    }
}

/// Bytes of the weights in memory: floats in the teacher's type, what is packed as it is stored.
fn weight_bytes(weights: &Weights, element: usize) -> u64 {
    let bytes = weights.names().filter_map(|name| {
        let (_, shape, stored) = weights.raw(name).ok()?;
        let is_packed = Nf4Matrix::is_stored(weights, name);
        let is_float = !is_packed && (name.ends_with(".weight") || name.ends_with(".bias"));
        Some(match is_float {
            true => shape.iter().product::<usize>() * element,
            false => stored.len(),
        })
    });
    bytes.sum::<usize>() as u64
}
