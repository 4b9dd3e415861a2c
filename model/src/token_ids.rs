//! Provides the check of token ids before a forward pass: how many, and which.

use candle_core::Tensor;

use crate::{Error, ModelConfig, Result};

impl ModelConfig {
    /// Refuses what a forward pass over positions from `offset` on cannot take; gives T.
    ///
    /// # Shapes
    /// ids [B, T] u32, in host memory or wherever the pass is to be: from a card they are read back, which waits for all it does
    ///
    /// # Errors
    /// When an id is outside the vocabulary, there are none, or more positions than the model's.
    pub fn check_tokens(&self, ids: &Tensor, offset: usize) -> Result<usize> {
        let (batch, len) = ids.dims2()?;
        let max = self.max_position_embeddings;
        if batch == 0 || len == 0 || offset.saturating_add(len) > max {
            return Err(Error::Input(format!(
                "{batch} sequences of {len} tokens after {offset} earlier ones: there must be at \
                 least one of each, and at most {max} positions (max_position_embeddings)"
            )));
        }
        self.check_ids(ids)?;
        Ok(len)
    }

    /// candle checks this on the CPU only, and then without saying where.
    pub(crate) fn check_ids(&self, ids: &Tensor) -> Result<()> {
        let len = ids.dim(1)?;
        let flat = ids.flatten_all()?.to_vec1::<u32>()?;
        if let Some(at) = flat.iter().position(|id| *id as usize >= self.vocab_size) {
            let (sequence, position, id) = (at / len, at % len, flat[at]);
            return Err(Error::Input(format!(
                "token id {id} at position {position} of sequence {sequence} is outside this \
                 model's vocabulary of {}: was the text encoded for another model?",
                self.vocab_size
            )));
        }
        Ok(())
    }
}
