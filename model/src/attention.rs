//! Provides grouped-query causal self-attention: projections, norms of heads, rotary positions, and the attention itself
//! with its gradient.

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Shape, Tensor};

use std::sync::Arc;

use crate::attention_kernel::{self, Dims, Span};
use crate::element::{elements, host_elements};
use crate::kv_cache::LayerCache;
use crate::layer::load_projection;
use crate::norm::RmsNorm;
use crate::rope::Angles;
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
        Ok(Self {
            q_proj: load("q_proj", hidden, queries, config.qkv_bias)?,
            k_proj: load("k_proj", hidden, keys, config.qkv_bias)?,
            v_proj: load("v_proj", hidden, keys, config.qkv_bias)?,
            o_proj: load("o_proj", queries, hidden, config.output_bias)?,
            head_norms,
            dims: Dims {
                heads: config.num_attention_heads,
                key_value_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                window: config.windows.get(layer).copied().flatten(),
            },
        })
    }

    /// Attends from every position of `x` to itself and everything before it (within the layer's window), including what
    /// `cache` holds from earlier calls; the cache then holds this call's keys and values too.
    ///
    /// # Shapes
    /// x [B, T, d] -> [B, T, d]
    ///
    /// # Errors
    /// When shapes disagree.
    pub fn forward(
        &self,
        x: &Tensor,
        angles: &Angles,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let (batch, len, _) = x.dims3()?;
        let dims = self.dims;
        let split = |x: Tensor, heads| x.reshape((batch, len, heads, dims.head_dim));
        let mut q = split(self.q_proj.forward(x)?, dims.heads)?;
        let mut k = split(self.k_proj.forward(x)?, dims.key_value_heads)?;
        let v = split(self.v_proj.forward(x)?, dims.key_value_heads)?;
        if let Some([q_norm, k_norm]) = &self.head_norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let (q, k) = (angles.apply(&q)?, angles.apply(&k)?);
        let (k, v) = match cache {
            Some(cache) => cache.append(k, v)?,
            None => (k, v),
        };
        let attended = causal_attention(&q, &k, &v, dims.window, angles.documents())?;
        self.o_proj
            .forward(&attended.reshape((batch, len, dims.heads * dims.head_dim))?)
    }

    pub(crate) fn dims(&self) -> Dims {
        self.dims
    }

    /// The norm of queries and that of keys, where the model has them.
    pub(crate) fn head_norms(&self) -> Option<&[RmsNorm; 2]> {
        self.head_norms.as_ref()
    }

    pub(crate) fn linears(&self) -> [&Linear; 4] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj]
    }
}

/// Attention of each query over the keys up to its own position; the queries are the last T_q of the
/// T_k positions. Query head h reads key head `h / (H / KV)`. With a `window`, a position sees that many latest ones, itself
/// included.
///
/// Where one row of T positions is packed from `documents` of these lengths, positions see their own document only.
///
/// # Shapes
/// q [B, T_q, H, head_dim], k and v [B, T_k, KV, head_dim] -> [B, T_q, H, head_dim]
///
/// # Errors
/// When shapes disagree.
pub(crate) fn causal_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    window: Option<usize>,
    documents: Option<&Arc<[usize]>>,
) -> Result<Tensor> {
    if !q.device().is_cpu() {
        return match documents {
            Some(documents) => packed_attention_reference(q, k, v, window, documents),
            None => causal_attention_reference(q, k, v, window),
        };
    }
    // Scores, softmax and sums stay in f32 for every dtype; only the output is rounded.
    let wide = |x: &Tensor| x.to_dtype(DType::F32)?.contiguous();
    let op = CausalAttention {
        window,
        documents: documents.cloned(),
    };
    let out = wide(q)?.apply_op3(&wide(k)?, &wide(v)?, op)?;
    Ok(out.to_dtype(q.dtype())?)
}

/// The same in candle's own operations, with [T_q, T_k] matrices: for other devices, and to test the
/// kernel against.
pub(crate) fn causal_attention_reference(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    window: Option<usize>,
) -> Result<Tensor> {
    let (_, queries, heads, head_dim) = q.dims4()?;
    let (batch, keys, key_value_heads, _) = k.dims4()?;
    let group = heads / key_value_heads;
    // Heads of one group become rows of one matrix, so that k and v need not be repeated.
    let q = q.transpose(1, 2)?.contiguous()?.reshape((
        batch,
        key_value_heads,
        group * queries,
        head_dim,
    ))?;
    let (k, v) = (
        k.transpose(1, 2)?.contiguous()?,
        v.transpose(1, 2)?.contiguous()?,
    );
    let scores = (q.matmul(&k.t()?)? * (head_dim as f64).powf(-0.5))?
        .to_dtype(DType::F32)?
        .reshape((batch, heads, queries, keys))?
        .broadcast_add(&causal_mask(queries, keys, window, q.device())?)?;
    let shifted = scores
        .broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?
        .exp()?;
    let probabilities = shifted
        .broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?
        .to_dtype(v.dtype())?
        .reshape((batch, key_value_heads, group * queries, keys))?;
    let out = probabilities
        .matmul(&v)?
        .reshape((batch, heads, queries, head_dim))?;
    Ok(out.transpose(1, 2)?.contiguous()?)
}

/// As [`causal_attention_reference`], document by document.
pub(crate) fn packed_attention_reference(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    window: Option<usize>,
    documents: &[usize],
) -> Result<Tensor> {
    let mut start = 0;
    let mut parts = Vec::with_capacity(documents.len());
    for length in documents {
        let part = |x: &Tensor| x.narrow(1, start, *length);
        let (q, k, v) = (part(q)?, part(k)?, part(v)?);
        parts.push(causal_attention_reference(&q, &k, &v, window)?);
        start += length;
    }
    Ok(Tensor::cat(&parts, 1)?)
}

/// 0 where a query may look, -inf after it and before its window: [T_q, T_k].
fn causal_mask(
    queries: usize,
    keys: usize,
    window: Option<usize>,
    device: &candle_core::Device,
) -> Result<Tensor> {
    let past = keys - queries;
    let window = window.unwrap_or(keys);
    let mask: Vec<f32> = (0..queries)
        .flat_map(|i| {
            (0..keys).map(move |j| {
                if j <= past + i && past + i < j + window {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            })
        })
        .collect();
    Ok(Tensor::from_vec(mask, (queries, keys), device)?)
}

struct CausalAttention {
    window: Option<usize>,
    documents: Option<Arc<[usize]>>,
}

impl CausalAttention {
    fn plan(&self, q: &Shape, k: &Shape, v: &Shape) -> candle_core::Result<(Dims, Vec<Span>)> {
        let (batch, queries, heads, head_dim) = q.dims4()?;
        let (k_batch, keys, key_value_heads, k_head_dim) = k.dims4()?;
        let fits = k == v
            && k_batch == batch
            && k_head_dim == head_dim
            && (1..=keys).contains(&queries)
            && key_value_heads > 0
            && heads.is_multiple_of(key_value_heads);
        if !fits || batch * heads * head_dim == 0 {
            candle_core::bail!("attention: q {q:?}, k {k:?} and v {v:?} do not fit each other");
        }
        let spans = match &self.documents {
            None => Span::batch(batch, queries, keys),
            Some(lengths) => {
                let packed: usize = lengths.iter().sum();
                if batch != 1 || queries != keys || packed != keys {
                    candle_core::bail!("attention: documents of {packed} positions in q {q:?}");
                }
                Span::documents(lengths)
            }
        };
        let dims = Dims {
            heads,
            key_value_heads,
            head_dim,
            window: self.window,
        };
        Ok((dims, spans))
    }
}

impl CustomOp3 for CausalAttention {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (dims, spans) = self.plan(q_layout.shape(), k_layout.shape(), v_layout.shape())?;
        let q = elements(q, q_layout)?;
        let (k, v) = (elements(k, k_layout)?, elements(v, v_layout)?);
        let mut out = vec![0f32; q.len()];
        attention_kernel::forward(dims, &spans, (q, k, v), &mut out);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dims, spans) = self.plan(q.shape(), k.shape(), v.shape())?;
        let grad = grad.contiguous()?;
        let (q_storage, q_layout) = q.storage_and_layout();
        let (k_storage, k_layout) = k.storage_and_layout();
        let (v_storage, v_layout) = v.storage_and_layout();
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let inputs = (
            host_elements(&q_storage, q_layout)?,
            host_elements(&k_storage, k_layout)?,
            host_elements(&v_storage, v_layout)?,
        );
        let grad = host_elements(&grad_storage, grad_layout)?;
        let gradients = attention_kernel::backward(dims, &spans, inputs, grad);
        Ok((
            Some(Tensor::from_vec(gradients.q, q.shape(), q.device())?),
            Some(Tensor::from_vec(gradients.k, k.shape(), k.device())?),
            Some(Tensor::from_vec(gradients.v, v.shape(), v.device())?),
        ))
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
