//! Provides the decoder's shape, read from a model directory's `config.json` and checked.

mod architecture;
mod check;
mod raw;
mod rope;
mod window;

use std::path::Path;

use crate::{Error, Result};
pub use architecture::Architecture;
use check::Problem;
use raw::RawConfig;
pub use rope::RopeScaling;

/// Largest `config.json` that is read; real ones are a few KiB.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// The decoder's shape. Every number is within the limits of this module, and they fit together.
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
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, when a number is missing or out of range, or when it
    /// asks for something this decoder does not do; the message names the field.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let length = std::fs::metadata(&path)
            .map_err(|source| Error::io(&path, source))?
            .len();
        if length > CONFIG_BYTES_MAX {
            let problem = format!("{length} bytes; at most {CONFIG_BYTES_MAX} are read");
            return Err(Error::malformed(&path, "(file size)", problem));
        }
        let json = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
        Self::parse(&json, &path)
    }

    /// Parses the bytes of a `config.json`; `path` is used in messages only.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(json: &[u8], path: &Path) -> Result<Self> {
        let raw: RawConfig = serde_json::from_slice(json)
            .map_err(|source| Error::malformed(path, "(JSON)", source.to_string()))?;
        raw.check()
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

    /// Names and shapes of all tensors of a checkpoint, in the order of the forward pass.
    pub fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (d, m) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.query_size(), self.key_value_size());
        let attention = [
            ("q_proj", [q, d], self.qkv_bias),
            ("k_proj", [kv, d], self.qkv_bias),
            ("v_proj", [kv, d], self.qkv_bias),
            ("o_proj", [d, q], self.output_bias),
        ];
        let mlp = [
            ("gate_proj", [m, d], self.mlp_bias),
            ("up_proj", [m, d], self.mlp_bias),
            ("down_proj", [d, m], self.mlp_bias),
        ];
        let rows = vec![self.vocab_size, d];
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), rows.clone())];
        for layer in 0..self.num_hidden_layers {
            let halves: [(&str, &str, &[_]); 2] = [
                ("input_layernorm", "self_attn", &attention),
                ("post_attention_layernorm", "mlp", &mlp),
            ];
            for (norm, module, linears) in halves {
                let prefix = format!("model.layers.{layer}");
                shapes.push((format!("{prefix}.{norm}.weight"), vec![d]));
                for (name, shape, bias) in linears {
                    let linear = format!("{prefix}.{module}.{name}");
                    shapes.push((format!("{linear}.weight"), shape.to_vec()));
                    if *bias {
                        shapes.push((format!("{linear}.bias"), vec![shape[0]]));
                    }
                }
                if self.qk_norm && module == "self_attn" {
                    for name in ["q_norm", "k_norm"] {
                        let norm = format!("{prefix}.{module}.{name}.weight");
                        shapes.push((norm, vec![self.head_dim]));
                    }
                }
            }
        }
        shapes.push(("model.norm.weight".to_owned(), vec![d]));
        if !self.tie_word_embeddings {
            shapes.push(("lm_head.weight".to_owned(), rows));
        }
        shapes
    }
}

#[cfg(test)]
mod tests;
