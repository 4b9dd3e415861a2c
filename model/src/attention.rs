//! Provides the weights of grouped-query self-attention: projections, and norms of heads where a model has them.

use crate::layer::{load_projection, load_stacked};
use crate::norm::RmsNorm;
use crate::ops::Dims;
use crate::{Linear, LoadOptions, ModelConfig, Result, Weights};

/// The attention block of one layer.
#[derive(Debug)]
pub struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Of every head's queries and keys, where the model has them.
    head_norms: Option<[RmsNorm; 2]>,
    /// Whether queries and keys are turned by their positions.
    turned: bool,
    dims: Dims,
}

impl Attention {
    /// Reads the projections of layer `layer` below `prefix`, such as `model.layers.0.self_attn`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        config: &ModelConfig,
        weights: &Weights,
        (layer, prefix): (usize, &str),
        options: &LoadOptions,
    ) -> Result<Self> {
        let load = |name: &str, inputs, outputs, bias| {
            let prefix = format!("{prefix}.{name}");
            load_projection(weights, &prefix, (inputs, outputs), bias, options)
        };
        let norm = |name: &str| {
            let prefix = format!("{prefix}.{name}");
            let eps = config.rms_norm_eps;
            RmsNorm::load(weights, &prefix, config.head_dim, eps, options)
        };
        let hidden = config.hidden_size;
        let (queries, keys) = (config.query_size(), config.key_value_size());
        let head_norms = match config.qk_norm {
            true => Some([norm("q_norm")?, norm("k_norm")?]),
            false => None,
        };
        let (q_proj, k_proj, v_proj) = match config.model_type.stacks_projections() {
            true => {
                let parts = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)];
                let [q, k, v] =
                    load_stacked(weights, (prefix, "qkv_proj"), hidden, parts, options)?;
                (q, k, v)
            }
            false => (
                load("q_proj", hidden, queries, config.qkv_bias)?,
                load("k_proj", hidden, keys, config.qkv_bias)?,
                load("v_proj", hidden, keys, config.qkv_bias)?,
            ),
        };
        Ok(Self {
            q_proj,
            k_proj,
            v_proj,
            o_proj: load("o_proj", queries, hidden, config.output_bias)?,
            head_norms,
            turned: config.turned.get(layer).copied().unwrap_or(true),
            dims: Dims {
                heads: config.num_attention_heads,
                key_value_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                window: config.windows.get(layer).copied().flatten(),
            },
        })
    }

    pub(crate) fn dims(&self) -> Dims {
        self.dims
    }

    /// Whether queries and keys are turned by their positions.
    pub(crate) fn turned(&self) -> bool {
        self.turned
    }

    /// The norm of queries and that of keys, where the model has them.
    pub(crate) fn head_norms(&self) -> Option<&[RmsNorm; 2]> {
        self.head_norms.as_ref()
    }

    pub(crate) fn linears(&self) -> [&Linear; 4] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj]
    }

    /// The projection back to the stream.
    pub(crate) fn output(&self) -> &Linear {
        &self.o_proj
    }
}
