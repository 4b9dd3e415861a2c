//! Provides a model's shape, read from its directory's `config.json` and checked.
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

mod architecture;
mod check;
mod experts;
mod raw;
mod rope;
mod shapes;
mod window;

use std::path::Path;

use crate::{Error, Result};
pub use architecture::Architecture;
use check::{Problem, problem};
pub use experts::Experts;
use raw::RawConfig;
pub use rope::RopeScaling;

/// Largest `config.json` that is read; real ones are a few KiB.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
const CONFIG_FILE: &str = "config.json";

/// A model's shape. Every number is within the limits of this module, and they fit together.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family the checkpoint belongs to.
    pub model_type: Architecture,
    /// Rows of the embedding and of the head, padding rows included.
    pub vocab_size: usize,
    /// Width d of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads H.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head, even; need not divide the stream's.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Of each layer, whether it turns queries and keys by their positions.
    pub turned: Vec<bool>,
    /// How the frequencies are stretched for sequences longer than the first ones.
    pub rope_scaling: RopeScaling,
    /// Of each layer, the number of latest positions that one attends to, itself included; `None` for all.
    pub windows: Vec<Option<usize>>,
    /// Longest sequence the model was made for; longer ones are refused.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v projections carry a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output projection carries a bias.
    pub output_bias: bool,
    /// Whether the MLP's projections carry a bias.
    pub mlp_bias: bool,
    /// Whether every head's queries and keys pass an RMSNorm of their own before they are turned.
    pub qk_norm: bool,
    /// What stands in place of some layers' MLPs; only in families that the [`Decoder`](crate::Decoder) does not cover.
    pub experts: Option<Experts>,
}

impl ModelConfig {
    /// Reads `config.json` in `dir`: the shape of a model that the [`Decoder`](crate::Decoder) covers.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, when a number is missing or out of range, or when it
    /// asks for something this decoder does not do; the message names the field.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        Self::parse(&read(&path)?, &path)
    }

    /// As [`load`](Self::load), and families that run as teachers only, outside the decoder.
    ///
    /// # Errors
    /// As [`load`](Self::load), for what neither does.
    pub fn load_teacher(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        Self::parse_teacher(&read(&path)?, &path)
    }

    /// Parses the bytes of a `config.json`; `path` is used in messages only.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(json: &[u8], path: &Path) -> Result<Self> {
        Self::checked(json, path, |config| match config.model_type.is_outside() {
            true => problem(
                "model_type",
                format!(
                    "`{}` runs in teacher-server only, and cannot be trained, quantised or planned for; take one of {}",
                    config.model_type.name(),
                    Architecture::names(|known| !known.is_outside())
                ),
            ),
            false => Ok(config),
        })
    }

    /// As [`parse`](Self::parse), for what [`load_teacher`](Self::load_teacher) reads.
    ///
    /// # Errors
    /// As [`load_teacher`](Self::load_teacher).
    pub fn parse_teacher(json: &[u8], path: &Path) -> Result<Self> {
        Self::checked(json, path, Ok)
    }

    fn checked(
        json: &[u8],
        path: &Path,
        also: impl Fn(Self) -> Result<Self, Problem>,
    ) -> Result<Self> {
        let raw: RawConfig = serde_json::from_slice(json)
            .map_err(|source| Error::malformed(path, "(JSON)", source.to_string()))?;
        raw.check()
            .and_then(also)
            .map_err(|Problem { field, problem }| Error::malformed(path, field, problem))
    }

    /// Width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

/// Reads a `config.json`, where it is no longer than real ones are.
fn read(path: &Path) -> Result<Vec<u8>> {
    distill_program::files::read(path, CONFIG_BYTES_MAX).map_err(|e| Error::io(path, e.reason))
}

#[cfg(test)]
mod tests;
