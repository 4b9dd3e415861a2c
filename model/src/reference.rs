//! Provides the decoder in candle's own operations, whose autograd is what every gradient is tested against.

use candle_core::{D, DType, Tensor};

use crate::attention::Attention;
use crate::layer::DecoderLayer;
use crate::mlp::Mlp;
use crate::norm::RmsNorm;
use crate::rope::Angles;
use crate::{Decoder, Linear, Parameter, Result, Weight};

impl Decoder {
    /// Hidden states with the graph of the whole model behind them.
    ///
    /// # Shapes
    /// ids [B, T] u32 -> [B, T, d]
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states).
    pub fn forward_graph(&self, ids: &Tensor) -> Result<Tensor> {
        self.graph(ids, &self.angles(ids, 0)?)
    }

    /// As [`forward_graph`](Self::forward_graph), for documents in one row.
    ///
    /// # Errors
    /// As [`packed_tape`](Self::packed_tape).
    pub fn packed_forward_graph(&self, ids: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        self.graph(ids, &self.packed_angles(ids, lengths)?)
    }

    fn graph(&self, ids: &Tensor, angles: &Angles) -> Result<Tensor> {
        let (batch, len) = ids.dims2()?;
        let x = self.embedding_rows(&ids.flatten_all()?)?;
        let mut x = x.reshape((batch, len, ()))?;
        for each in self.layers() {
            x = layer(each, &x, angles, self.dtype())?;
        }
        Ok(rms_norm(self.norm(), &x)?.to_dtype(self.dtype())?)
    }
}

/// `h = x + attention(norm(x)); h + mlp(norm(h))`: [B, T, d]
pub(crate) fn layer(
    layer: &DecoderLayer,
    x: &Tensor,
    angles: &Angles,
    dtype: DType,
) -> Result<Tensor> {
    let [attention_norm, mlp_norm] = layer.norms();
    let normed = rms_norm(attention_norm, x)?.to_dtype(dtype)?;
    let x = (x + attention(layer.attention(), &normed, angles)?.to_dtype(x.dtype())?)?;
    let normed = rms_norm(mlp_norm, &x)?.to_dtype(dtype)?;
    Ok((&x + mlp(layer.mlp(), &normed)?.to_dtype(x.dtype())?)?)
}

/// `w x / sqrt(mean(x^2) + eps)`, in x's type.
pub(crate) fn rms_norm(norm: &RmsNorm, x: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let scale = (mean_square + f64::from(norm.eps()))?.sqrt()?.recip()?;
    let weight = norm.weight().to_dtype(DType::F32)?;
    let normed = wide.broadcast_mul(&scale)?.broadcast_mul(&weight)?;
    Ok(normed.to_dtype(x.dtype())?)
}

/// `x W^T + bias + scale (x A^T) B^T`, in f32 and rounded to x's type.
pub(crate) fn linear(linear: &Linear, x: &Tensor) -> Result<Tensor> {
    let dims = x.dims();
    let (leading, width) = (&dims[..dims.len() - 1], dims[dims.len() - 1]);
    let x = x.reshape(((), width))?;
    let wide = x.to_dtype(DType::F32)?;
    let device = x.device();
    let weight = match linear.weight() {
        Weight::Dense(weight) => weight.to_dtype(DType::F32)?,
        Weight::Nf4(weight) => weight.dequantize(DType::F32, device)?,
        Weight::Packed(weight) => weight.dequantize(DType::F32, device)?,
        Weight::Trainable(weight) => weight.as_tensor().clone(),
    };
    let mut y = wide.matmul(&weight.t()?)?;
    if let Some(bias) = linear.bias().map(Parameter::tensor) {
        y = y.broadcast_add(&bias.to_dtype(DType::F32)?)?;
    }
    if let Some(lora) = linear.lora() {
        let low = (wide.matmul(&lora.a.t()?)? * lora.scale)?;
        y = (y + low.matmul(&lora.b.t()?)?)?;
    }
    let shape = [leading, &[linear.out_features()]].concat();
    Ok(y.to_dtype(x.dtype())?.reshape(shape)?)
}

fn mlp(mlp: &Mlp, x: &Tensor) -> Result<Tensor> {
    let [gate, up, down] = mlp.linears();
    linear(down, &swiglu(&linear(gate, x)?, &linear(up, x)?)?)
}

/// `silu(gate) * up`.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok((gate.silu()? * up)?)
}

fn attention(attention: &Attention, x: &Tensor, angles: &Angles) -> Result<Tensor> {
    let (batch, len, _) = x.dims3()?;
    let dims = attention.dims();
    let [q, k, v, o] = attention.linears();
    let split = |of: &Linear, heads: usize| -> Result<Tensor> {
        Ok(linear(of, x)?.reshape((batch, len, heads, dims.head_dim))?)
    };
    let mut q = split(q, dims.heads)?;
    let mut k = split(k, dims.key_value_heads)?;
    let v = split(v, dims.key_value_heads)?;
    if let Some([q_norm, k_norm]) = attention.head_norms() {
        (q, k) = (rms_norm(q_norm, &q)?, rms_norm(k_norm, &k)?);
    }
    if attention.turned() {
        (q, k) = (rope(angles, &q)?, rope(angles, &k)?);
    }
    let attended = match angles.documents() {
        Some(documents) => packed_attention(&q, &k, &v, dims.window, documents)?,
        None => causal_attention(&q, &k, &v, dims.window)?,
    };
    linear(o, &attended.reshape((batch, len, ()))?)
}

/// `[x1 cos - x2 sin, x2 cos + x1 sin]` of every head: [B, T, heads, head_dim].
pub(crate) fn rope(angles: &Angles, x: &Tensor) -> Result<Tensor> {
    let half = angles.half;
    let table = |of: &Tensor| of.reshape((angles.positions, 1, half))?.to_dtype(x.dtype());
    let (cos, sin) = (table(&angles.cos)?, table(&angles.sin)?);
    let (first, second) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let turn = |straight: &Tensor, crossed: &Tensor| -> Result<(Tensor, Tensor)> {
        Ok((straight.broadcast_mul(&cos)?, crossed.broadcast_mul(&sin)?))
    };
    let (a, b) = turn(&first, &second)?;
    let (c, d) = turn(&second, &first)?;
    Ok(Tensor::cat(&[(a - b)?, (c + d)?], 3)?)
}

/// Attention with [T_q, T_k] matrices.
pub(crate) fn causal_attention(
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

/// As [`causal_attention`], document by document.
pub(crate) fn packed_attention(
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
        parts.push(causal_attention(&q, &k, &v, window)?);
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
