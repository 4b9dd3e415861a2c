//! Provides Qwen3 with experts, as candle-transformers computes it.

use candle_core::{Device, Tensor};
use candle_nn::Activation;
use candle_transformers::models::qwen3_moe::{Config, Model};
use distill_model::{
    Decoder, Error, Experts, LoadOptions, ModelConfig, Result, TokenMatrix, Weights, weight_bytes,
};

use super::{Backbone, checkpoint};

/// Qwen3 with experts.
///
/// f32 is the reference. In bf16 the residual stream, the router's softmax and the tables of cosines and sines are bf16 too
/// (their angles are f32), where the decoder's stream is f32.
pub(super) struct Qwen3Moe {
    config: ModelConfig,
    /// Never run itself, so that its caches of keys and values stay empty: they cannot be cleared from outside.
    pristine: Model,
    head: TokenMatrix,
    weight_bytes: usize,
    device: Device,
}

impl Qwen3Moe {
    /// Reads the weights.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than `config` says, or an option that makes no sense.
    pub fn load(config: &ModelConfig, weights: &Weights, options: &LoadOptions) -> Result<Self> {
        options.validate()?;
        let config = &weights.settled(config);
        let experts = config.experts.ok_or_else(|| Error::Unsupported {
            what: format!("{} without experts", config.model_type.name()),
            remedy: "take qwen3".into(),
        })?;
        let head = Decoder::load_head(config, weights, options)?;
        let embedding = if config.tie_word_embeddings {
            Some(head.tensor()?.clone())
        } else {
            None
        };
        let shape = shape(config, experts);
        let pristine = checkpoint::build(weights, embedding, options, |vb| Model::new(&shape, vb))?;
        Ok(Self {
            pristine,
            head,
            weight_bytes: weight_bytes(config, weights, options)? as usize,
            device: options.device.clone(),
            config: config.clone(),
        })
    }
}

impl Backbone for Qwen3Moe {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn head_matrix(&self) -> &TokenMatrix {
        &self.head
    }

    fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    fn hidden_states(&self, ids: &Tensor) -> Result<Tensor> {
        self.config.check_tokens(ids, 0)?;
        // A copy shares the weights, and takes its caches with it.
        Ok(self
            .pristine
            .clone()
            .forward(&ids.to_device(&self.device)?, 0)?)
    }
}

fn shape(config: &ModelConfig, experts: Experts) -> Config {
    Config {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        head_dim: config.head_dim,
        attention_bias: config.qkv_bias,
        num_key_value_heads: config.num_key_value_heads,
        max_position_embeddings: config.max_position_embeddings,
        sliding_window: None,
        max_window_layers: config.num_hidden_layers,
        tie_word_embeddings: config.tie_word_embeddings,
        rope_theta: config.rope_theta,
        rms_norm_eps: config.rms_norm_eps,
        use_sliding_window: false,
        hidden_act: Activation::Silu,
        decoder_sparse_step: experts.decoder_sparse_step,
        moe_intermediate_size: experts.moe_intermediate_size,
        num_experts_per_tok: experts.num_experts_per_tok,
        num_experts: experts.num_experts,
        norm_topk_prob: experts.norm_topk_prob,
    }
}
