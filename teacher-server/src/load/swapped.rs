//! Provides a teacher that is brought to the device again and again, from the open files that the system keeps in memory.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use distill_model::{ModelConfig, Weights, hand_back, weight_bytes};

use super::{Opened, load_options, load_teacher};
use crate::{
    Result,
    backbone::score_bytes,
    config::Config,
    forward::Teacher,
    lease::MemoryOf,
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
    device: Device,
    model: ModelConfig,
    weights: Arc<Weights>,
    vocab_size: u32,
    weight_bytes: u64,
    device_bytes: u64,
    projection: Option<Tensor>,
}

impl Swapped {
    /// Adds up what it takes.
    ///
    /// # Errors
    /// As reading the tensors that are stored in four bits.
    pub fn new(config: &Config, opened: &Opened) -> Result<Self> {
        let vocab_size = opened.tokenizer.size();
        let (device, model, weights) = (&opened.device, &opened.model, &opened.weights);
        let dtype = config.dtype.on(device);
        let options = load_options(dtype, device);
        let batch = (config.batch_size, config.seq_len);
        let scores = score_bytes(model, batch, dtype, device);
        let logits = config.chunk_rows as u64 * u64::from(vocab_size) * 4;
        let weight_bytes = weight_bytes(model, weights, &options)?;
        Ok(Self {
            config: config.clone(),
            device: device.clone(),
            model: model.clone(),
            weights: weights.clone(),
            vocab_size,
            weight_bytes,
            device_bytes: weight_bytes + LOGIT_COPIES * logits + scores + WORKING_BYTES,
            projection: None,
        })
    }

    /// Memory that the weights take on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
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
            memory: Box::new(MemoryOf(self.device.clone())),
            source: Box::new(self),
        }
    }

    fn teacher(&self) -> Result<Teacher> {
        let teacher = load_teacher(
            &self.config,
            &self.device,
            &self.model,
            &self.weights,
            self.vocab_size,
        )?;
        Ok(match &self.projection {
            Some(projection) => teacher.with_projection(projection.clone()),
            None => teacher,
        })
    }
}

impl Reload for Swapped {
    fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    fn load(&self) -> Result<Box<dyn Forward>> {
        Ok(Box::new(self.teacher()?))
    }

    fn settle(&self) -> Result<()> {
        Ok(hand_back(&self.device)?)
    }
}
