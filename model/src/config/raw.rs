//! Provides `config.json` as written, by transformers 4 or 5, and its checks.

use serde::{Deserialize, Deserializer};

use super::check::{Problem, problem, required, within};
use super::rope::RawRope;
use super::{Architecture, ModelConfig};

const VOCAB_SIZE_MAX: usize = 1 << 22;
const HIDDEN_SIZE_MAX: usize = 1 << 16;
pub(super) const INTERMEDIATE_SIZE_MAX: usize = 1 << 20;
pub(super) const LAYERS_MAX: usize = 1024;
const HEADS_MAX: usize = 1024;
const HEAD_DIM_MAX: usize = 1024;
pub(super) const POSITIONS_MAX: usize = 1 << 24;

/// The fields that are read.
#[derive(Deserialize)]
pub(super) struct RawConfig {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    pub(super) num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f64>,
    pub(super) rope_theta: Option<f64>,
    pub(super) rope_scaling: Option<RawRope>,
    pub(super) rope_parameters: Option<RawRope>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) no_rope_layers: Option<Vec<u8>>,
    pub(super) no_rope_layer_interval: Option<usize>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    pub(super) use_sliding_window: Option<bool>,
    /// Outer `None` where the file does not mention it, which is not the same as null.
    #[serde(default, deserialize_with = "mentioned")]
    pub(super) sliding_window: Option<Option<usize>>,
    pub(super) max_window_layers: Option<usize>,
    pub(super) layer_types: Option<Vec<String>>,
    pub(super) num_experts: Option<usize>,
    pub(super) num_local_experts: Option<usize>,
    pub(super) num_experts_per_tok: Option<usize>,
    pub(super) moe_intermediate_size: Option<usize>,
    pub(super) norm_topk_prob: Option<bool>,
    pub(super) decoder_sparse_step: Option<usize>,
    pub(super) mlp_only_layers: Option<Vec<usize>>,
}

fn mentioned<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(value).map(Some)
}

impl RawConfig {
    pub(super) fn check(&self) -> Result<ModelConfig, Problem> {
        let model_type = self.architecture()?;
        self.refuse_other_activations()?;
        let num_hidden_layers = required("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX)?;
        let hidden_size = required("hidden_size", self.hidden_size, HIDDEN_SIZE_MAX)?;
        let num_attention_heads =
            required("num_attention_heads", self.num_attention_heads, HEADS_MAX)?;
        let max_position_embeddings = required(
            "max_position_embeddings",
            self.max_position_embeddings
                .or(Some(model_type.max_position_embeddings())),
            POSITIONS_MAX,
        )?;
        // The others have no such setting.
        let llama_like = matches!(model_type, Architecture::Llama | Architecture::SmolLm3);
        let qwen3_like = matches!(model_type, Architecture::Qwen3 | Architecture::Qwen3Moe);
        let has_biases = llama_like || qwen3_like;
        let attention_bias = self.attention_bias.unwrap_or(false) && has_biases;
        let tied_by_default = model_type == Architecture::SmolLm3;
        let head_dim = self.head_dim(model_type, hidden_size, num_attention_heads)?;
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
            num_key_value_heads: self.key_value_heads(num_attention_heads)?,
            head_dim,
            rms_norm_eps: within(
                "rms_norm_eps",
                self.rms_norm_eps.unwrap_or(model_type.rms_norm_eps()),
                1e-12,
                1.0,
            )?,
            rope_theta: within(
                "rope_theta",
                self.rope_theta(model_type.rope_theta()),
                1.0,
                1e12,
            )?,
            turned: self.turned(model_type, num_hidden_layers)?,
            rope_scaling: self.rope_scaling(model_type, max_position_embeddings, head_dim / 2)?,
            windows: self.windows(model_type, num_hidden_layers)?,
            max_position_embeddings,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(tied_by_default),
            qkv_bias: attention_bias || model_type == Architecture::Qwen2,
            output_bias: attention_bias,
            mlp_bias: self.mlp_bias.unwrap_or(false) && llama_like,
            qk_norm: qwen3_like,
            experts: self.experts(model_type)?,
        })
    }

    fn architecture(&self) -> Result<Architecture, Problem> {
        let supported = Architecture::names(|_| true);
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

    fn refuse_other_activations(&self) -> Result<(), Problem> {
        match &self.hidden_act {
            Some(act) if !matches!(act.as_str(), "silu" | "swish") => problem(
                "hidden_act",
                format!("`{act}` is not supported; supported is silu"),
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

    fn head_dim(
        &self,
        architecture: Architecture,
        hidden_size: usize,
        heads: usize,
    ) -> Result<usize, Problem> {
        let named = self.head_dim.or(architecture.head_dim());
        if named.is_none() && !hidden_size.is_multiple_of(heads) {
            return problem(
                "num_attention_heads",
                format!(
                    "{heads} does not divide hidden_size = {hidden_size}, and there is no head_dim"
                ),
            );
        }
        let head_dim = required(
            "head_dim",
            named.or(Some(hidden_size / heads)),
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
}
