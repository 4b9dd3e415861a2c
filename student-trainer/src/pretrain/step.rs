//! Provides one forward and backward pass over a batch: cross-entropy, and the gradient of every weight.

use candle_core::{DType, Tensor};
use distill_model::{Checkpointing, Decoder, Gradients};
use distill_text::Sequence;

use crate::{
    Result,
    loss::{HeadGeometry, LossConfig, head_loss_with_head},
    student::padded_ids,
};

/// What stays the same over all steps.
pub(super) struct Objective<'a> {
    pub decoder: &'a Decoder,
    /// Rows of the head that are in the softmax: the tokenizer's ids.
    vocab_size: usize,
    loss: LossConfig,
}

impl<'a> Objective<'a> {
    pub fn new(decoder: &'a Decoder, vocab_size: usize, chunk_rows: usize) -> Self {
        let loss = LossConfig {
            ce_weight: 1.0,
            kl_weight: 0.0,
            ot_weight: 0.0,
            chunk_rows,
            ..LossConfig::default()
        };
        Self {
            decoder,
            vocab_size,
            loss,
        }
    }

    /// Mean cross-entropy over all targets of the batch, its gradient added to `gradients`.
    pub fn forward_backward(&self, batch: &[&Sequence], gradients: &mut Gradients) -> Result<f64> {
        let device = self.decoder.device();
        let sequences = batch.iter().map(|sequence| sequence.token_ids.as_slice());
        let ids = padded_ids(sequences)?;
        let length = ids.dim(1)?;
        let (mut outputs, mut labels) = (Vec::new(), Vec::new());
        for (row, sequence) in batch.iter().enumerate() {
            let targets = sequence.token_ids.iter().zip(&sequence.target_mask);
            for (t, (&id, _)) in targets.enumerate().filter(|(_, (_, target))| **target) {
                // The output at t - 1 speaks of the token at t; the first token is never a target.
                outputs.push((row * length + t - 1) as u32);
                labels.push(id);
            }
        }
        let tape = self.decoder.tape(&ids, Checkpointing::Off)?;
        let hidden = tape.hidden().flatten_to(1)?;
        let outputs = Tensor::new(outputs, device)?;
        // The head moves with every step.
        let head = self.decoder.head()?;
        let geometry = HeadGeometry::new(&head.narrow(0, 0, self.vocab_size)?, None)?;
        let rows = hidden.index_select(&outputs, 0)?;
        let (loss, grad_head) = head_loss_with_head(&rows, &labels, None, &geometry, &self.loss)?;
        let padding = head.dim(0)? - self.vocab_size;
        let grad_head = grad_head.pad_with_zeros(0, 0, padding)?;
        gradients.add(self.decoder.head_name(), &grad_head)?;
        let grad = loss.grad_hidden.to_dtype(hidden.dtype())?;
        let grad_hidden = hidden.zeros_like()?.index_add(&outputs, &grad, 0)?;
        debug_assert_eq!(grad_hidden.dtype(), DType::F32);
        let grad_hidden = grad_hidden.reshape(tape.hidden().dims())?;
        tape.backward(&grad_hidden, gradients)?;
        Ok(loss.values.ce)
    }
}
