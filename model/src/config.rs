//! Provides the decoder's shape, read from a model directory's `config.json` and checked.

use std::path::Path;

use serde::Deserialize;

use crate::{Error, Result};

/// Largest `config.json` that is read; real ones are a few KiB.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
const VOCAB_SIZE_MAX: usize = 1 << 22;
const HIDDEN_SIZE_MAX: usize = 1 << 16;
const INTERMEDIATE_SIZE_MAX: usize = 1 << 20;
const LAYERS_MAX: usize = 1024;
const HEADS_MAX: usize = 1024;
const HEAD_DIM_MAX: usize = 1024;
const POSITIONS_MAX: usize = 1 << 24;

/// A family of checkpoints that the decoder's shape covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Llama and models saved as it (SmolLM2): biases only where the config asks for them.
    Llama,
}

impl Architecture {
    /// Every supported architecture, with the name `config.json` gives it.
    pub const ALL: [(&str, Self); 2] = [("qwen2", Self::Qwen2), ("llama", Self::Llama)];

    /// The name under which `config.json` knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Llama => "llama",
        }
    }

    fn max_position_embeddings(self) -> usize {
        match self {
            Self::Qwen2 => 32_768,
            Self::Llama => 2_048,
        }
    }
}

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
    /// Width of one head, even.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
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
            }
        }
        shapes.push(("model.norm.weight".to_owned(), vec![d]));
        if !self.tie_word_embeddings {
            shapes.push(("lm_head.weight".to_owned(), rows));
        }
        shapes
    }
}

/// What is wrong with one field; the caller adds the path.
struct Problem {
    field: &'static str,
    problem: String,
}

fn problem<T>(field: &'static str, problem: impl Into<String>) -> Result<T, Problem> {
    Err(Problem {
        field,
        problem: problem.into(),
    })
}

/// `config.json` as written, by transformers 4 or 5.
#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    partial_rotary_factor: Option<f64>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    use_sliding_window: Option<bool>,
    sliding_window: Option<usize>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

/// `rope_scaling` of transformers 4 (kind under `type` or `rope_type`), `rope_parameters` of 5.
#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

impl RawConfig {
    fn check(&self) -> Result<ModelConfig, Problem> {
        let model_type = self.architecture()?;
        self.refuse_unsupported()?;
        let num_hidden_layers = required("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX)?;
        self.refuse_sliding_window(num_hidden_layers)?;
        let hidden_size = required("hidden_size", self.hidden_size, HIDDEN_SIZE_MAX)?;
        let num_attention_heads =
            required("num_attention_heads", self.num_attention_heads, HEADS_MAX)?;
        let num_key_value_heads = self.key_value_heads(num_attention_heads)?;
        let attention_bias = self.attention_bias.unwrap_or(false);
        Ok(ModelConfig {
            model_type,
            vocab_size: required("vocab_size", self.vocab_size, VOCAB_SIZE_MAX)?,
            hidden_size,
            intermediate_size: required(
                "intermediate_size",
                self.intermediate_size,
                INTERMEDIATE_SIZE_MAX,
            )?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim: self.head_dim(hidden_size, num_attention_heads)?,
            rms_norm_eps: within(
                "rms_norm_eps",
                self.rms_norm_eps.unwrap_or(1e-6),
                1e-12,
                1.0,
            )?,
            rope_theta: within("rope_theta", self.rope_theta(), 1.0, 1e12)?,
            max_position_embeddings: required(
                "max_position_embeddings",
                self.max_position_embeddings
                    .or(Some(model_type.max_position_embeddings())),
                POSITIONS_MAX,
            )?,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            qkv_bias: attention_bias || model_type == Architecture::Qwen2,
            output_bias: attention_bias && model_type == Architecture::Llama,
            mlp_bias: self.mlp_bias.unwrap_or(false) && model_type == Architecture::Llama,
        })
    }

    fn architecture(&self) -> Result<Architecture, Problem> {
        let supported = Architecture::ALL.map(|(name, _)| name).join(", ");
        let Some(name) = &self.model_type else {
            return problem("model_type", format!("missing; supported are {supported}"));
        };
        match Architecture::ALL.iter().find(|(known, _)| known == name) {
            Some((_, architecture)) => Ok(*architecture),
            None => problem(
                "model_type",
                format!("`{name}` is not supported; supported are {supported}"),
            ),
        }
    }

    fn refuse_unsupported(&self) -> Result<(), Problem> {
        if let Some(act) = &self.hidden_act
            && !matches!(act.as_str(), "silu" | "swish")
        {
            return problem(
                "hidden_act",
                format!("`{act}` is not supported; supported is silu"),
            );
        }
        let ropes = [
            ("rope_scaling", &self.rope_scaling),
            ("rope_parameters", &self.rope_parameters),
        ];
        for (field, rope) in ropes {
            let Some(rope) = rope else { continue };
            if let Some(kind) = rope.rope_type.as_ref().or(rope.r#type.as_ref())
                && kind != "default"
            {
                return problem(
                    field,
                    format!("RoPE type `{kind}` is not supported; supported is default"),
                );
            }
            refuse_partial_rotary(field, rope.partial_rotary_factor)?;
        }
        refuse_partial_rotary("partial_rotary_factor", self.partial_rotary_factor)
    }

    /// A window that no layer uses is ignored, as transformers ignores it.
    fn refuse_sliding_window(&self, layers: usize) -> Result<(), Problem> {
        if let Some(types) = &self.layer_types {
            return match types.iter().find(|kind| *kind != "full_attention") {
                Some(kind) => problem(
                    "layer_types",
                    format!("`{kind}` is not supported; supported is full_attention"),
                ),
                None => Ok(()),
            };
        }
        let first = self.max_window_layers.unwrap_or(28);
        match self.sliding_window {
            Some(window) if self.use_sliding_window == Some(true) && first < layers => problem(
                "use_sliding_window",
                format!(
                    "layers {first} to {} would attend to a window of {window} tokens, which is \
                     not supported; supported is full attention",
                    layers - 1
                ),
            ),
            _ => Ok(()),
        }
    }

    fn key_value_heads(&self, heads: usize) -> Result<usize, Problem> {
        let key_value_heads = required(
            "num_key_value_heads",
            self.num_key_value_heads.or(Some(heads)),
            HEADS_MAX,
        )?;
        if !heads.is_multiple_of(key_value_heads) {
            return problem(
                "num_key_value_heads",
                format!("{key_value_heads} does not divide num_attention_heads = {heads}"),
            );
        }
        Ok(key_value_heads)
    }

    fn head_dim(&self, hidden_size: usize, heads: usize) -> Result<usize, Problem> {
        if self.head_dim.is_none() && !hidden_size.is_multiple_of(heads) {
            return problem(
                "num_attention_heads",
                format!(
                    "{heads} does not divide hidden_size = {hidden_size}, and there is no head_dim"
                ),
            );
        }
        let head_dim = required(
            "head_dim",
            self.head_dim.or(Some(hidden_size / heads)),
            HEAD_DIM_MAX,
        )?;
        if !head_dim.is_multiple_of(2) {
            return problem(
                "head_dim",
                format!("{head_dim} is odd; rotary embeddings turn pairs"),
            );
        }
        Ok(head_dim)
    }

    /// Where transformers looks: `rope_parameters` first, then the top level, then 10000.
    fn rope_theta(&self) -> f64 {
        let nested = [&self.rope_parameters, &self.rope_scaling]
            .into_iter()
            .flatten()
            .find_map(|rope| rope.rope_theta);
        nested.or(self.rope_theta).unwrap_or(10_000.0)
    }
}

fn refuse_partial_rotary(field: &'static str, factor: Option<f64>) -> Result<(), Problem> {
    match factor {
        Some(factor) if factor != 1.0 => problem(
            field,
            format!("a rotary factor of {factor} is not supported; supported is 1"),
        ),
        _ => Ok(()),
    }
}

fn required(field: &'static str, value: Option<usize>, max: usize) -> Result<usize, Problem> {
    match value {
        None => problem(field, "missing"),
        Some(value) if (1..=max).contains(&value) => Ok(value),
        Some(value) => problem(field, format!("{value} is outside 1..={max}")),
    }
}

fn within(field: &'static str, value: f64, min: f64, max: f64) -> Result<f64, Problem> {
    // NaN is in no range, so it is refused too.
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        problem(field, format!("{value} is outside {min}..={max}"))
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
