//! Provides which matrix is the head where a checkpoint and its config.json disagree, settled as transformers 5 settles it.
//!
//! `tie_word_embeddings` says what was meant; what counts is which of both matrices the checkpoint holds:
//!
//! | `model.embed_tokens.weight` | `lm_head.weight` | tied by config.json | read as |
//! |---|---|---|---|
//! | there | absent | yes | tied |
//! | there | there, with the same values | yes | tied |
//! | there | there, with other values | yes | not tied, with a warning |
//! | absent | there | yes | tied; the head is the embedding |
//! | there | there | no | not tied |
//!
//! A head that is absent without being tied is an error, where transformers makes up random numbers.

use candle_core::{DType, Device};
use serde_json::Value;

use super::Weights;
use crate::{ModelConfig, Result};

/// The embedding's name in every family of Hugging Face's.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The head's, where it has a matrix of its own.
pub(crate) const HEAD: &str = "lm_head.weight";

impl Weights {
    /// `config` with `tie_word_embeddings` as these tensors have it. The decoder and everything that counts or copies tensors
    /// must go by this one.
    #[must_use]
    pub fn settled(&self, config: &ModelConfig) -> ModelConfig {
        ModelConfig {
            tie_word_embeddings: config.tie_word_embeddings && !self.is_untied,
            ..config.clone()
        }
    }

    /// The tensor that is the head.
    ///
    /// # Errors
    /// A head that is neither tied nor there.
    pub(crate) fn head_name(&self, config: &ModelConfig) -> Result<&'static str> {
        if self.settled(config).tie_word_embeddings {
            return Ok(EMBEDDING);
        }
        if self.contains(HEAD) {
            return Ok(HEAD);
        }
        Err(self.error(
            HEAD,
            "is not there, and config.json does not tie the head to the embedding: set tie_word_embeddings to true in it where \
             both are one matrix, else look for the shard that is missing",
        ))
    }

    /// The content of a config.json as [`settled`](Self::settled).
    #[must_use]
    pub fn settled_json(&self, mut config: Value) -> Value {
        if let (true, Value::Object(fields)) = (self.is_untied, &mut config) {
            fields.insert("tie_word_embeddings".into(), false.into());
        }
        config
    }

    /// Compares both matrices where config.json says that they are one. A config.json that cannot be read is not this
    /// function's to report: whoever needs the model's shape reads it again.
    pub(super) fn settle_head(&mut self) -> Result<()> {
        if self.config.is_none() || !self.contains(HEAD) {
            return Ok(());
        }
        if !self
            .model_config()
            .is_ok_and(|config| config.tie_word_embeddings)
        {
            return Ok(());
        }
        if !self.contains(EMBEDDING) {
            if let Some(head) = self.tensors.remove(HEAD) {
                self.tensors.insert(EMBEDDING.to_owned(), head);
            }
            return Ok(());
        }
        self.is_untied = !self.are_equal(EMBEDDING, HEAD)?;
        if self.is_untied {
            tracing::warn!(
                "{}: config.json ties the head to the embedding, but {HEAD} is there with other values: it is used, as \
                 transformers 5 does; set tie_word_embeddings to false in config.json",
                self.path.display()
            );
        }
        Ok(())
    }

    /// Whether two tensors hold the same numbers. Of one type their bytes are compared, without a copy.
    fn are_equal(&self, one: &str, other: &str) -> Result<bool> {
        let ((one_dtype, one_shape, one_bytes), (other_dtype, other_shape, other_bytes)) =
            (self.raw(one)?, self.raw(other)?);
        if one_shape != other_shape {
            return Ok(false);
        }
        if one_dtype == other_dtype {
            return Ok(one_bytes == other_bytes);
        }
        let values = |name| -> Result<Vec<f32>> {
            let tensor = self.tensor(name, DType::F32, &Device::Cpu)?;
            Ok(tensor.flatten_all()?.to_vec1()?)
        };
        Ok(values(one)? == values(other)?)
    }
}
