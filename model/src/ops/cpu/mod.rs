//! Provides a layer's operations on the CPU: on f32 slices, in place, without a copy more than is kept.
//!
//! candle's own operations would copy and transpose, add every gradient to a tensor of zeros, and could not add a product to what
//! is there.

pub(crate) mod attention;
mod each_row;
mod linear;
mod matmul;
mod norm;
mod rope;
mod swiglu;
mod tiles;
mod workspace;

use candle_core::{DType, Device, Tensor};

use crate::attention::Attention;
use crate::element::{lend, round_all};
use crate::kv_cache::LayerCache;
use crate::mlp::Mlp;
use crate::norm::RmsNorm;
use crate::ops::{BeforeNorms, Dims, Heads, Ops, Projected, Span};
use crate::rope::Angles;
use crate::{Gradients, Linear, Result, TokenMatrix};
use linear::LowRank;
pub(crate) use matmul::{Store, Threads};
#[cfg(test)]
pub(crate) use tiles::multiply_in_tiles;
pub use tiles::tile_bytes;
pub(crate) use tiles::{Quantised, Side, multiply};
use workspace::Workspace;

/// The operations, with buffers that are used again.
#[derive(Debug)]
pub(crate) struct Cpu {
    /// The activations' type: they are held in f32 and rounded to it.
    dtype: DType,
    /// How products forward are computed.
    side: Side,
    space: Workspace,
}

impl Cpu {
    pub(crate) fn new(dtype: DType) -> Self {
        Self {
            dtype,
            side: Side::Forward,
            space: Workspace::default(),
        }
    }

    /// Activations of several linears of one input.
    fn linears<const COUNT: usize>(
        &mut self,
        linears: [&Linear; COUNT],
        x: &[f32],
    ) -> Result<([Vec<f32>; COUNT], Vec<LowRank>)> {
        let mut low = Vec::with_capacity(COUNT);
        let mut made = [const { Vec::new() }; COUNT];
        for (out, linear) in made.iter_mut().zip(linears) {
            let rows = x.len() / linear.in_features().max(1);
            *out = self.space.take(rows * linear.out_features());
            low.push(linear::apply(linear, x, out, Store::Replace, self.side)?);
            round_all(self.dtype, out);
        }
        Ok((made, low))
    }

    /// The way back: dL/dx, where it is wanted.
    fn linears_gradient<const COUNT: usize>(
        &mut self,
        linears: [&Linear; COUNT],
        x: &[f32],
        low: Vec<LowRank>,
        grads: [Vec<f32>; COUNT],
        wanted: bool,
        gradients: &mut Gradients,
    ) -> Result<Option<Vec<f32>>> {
        let mut to_x = wanted.then(|| self.space.take(x.len()));
        for (index, (linear, low)) in linears.into_iter().zip(low).enumerate() {
            let store = if index == 0 {
                Store::Replace
            } else {
                Store::Add
            };
            let into = to_x.as_mut().map(|to_x| (&mut to_x[..], store));
            linear::pull_back(linear, x, Some(low), &grads[index], into, gradients)?;
        }
        self.space.give_all(grads);
        Ok(to_x)
    }

    /// From the gradient of heads after their norm to that before it.
    fn head_norm_gradient(
        &mut self,
        norm: &RmsNorm,
        before: Vec<f32>,
        grad: Vec<f32>,
        gradients: &mut Gradients,
    ) -> Result<Vec<f32>> {
        let out = self.rms_norm_gradient(norm, &before, &grad, None, gradients)?;
        self.space.give_all([before, grad]);
        Ok(out)
    }
}

/// `h W^T` in f32 of a head, where no row's sums depend on the other rows.
///
/// # Shapes
/// hidden [n, d] -> [n, V]
pub(crate) fn head_logits(head: &TokenMatrix, hidden: &Tensor) -> Result<Tensor> {
    let (rows, width) = hidden.dims2()?;
    let x = hidden.to_dtype(DType::F32)?.contiguous()?;
    let x = lend(&x);
    let mut out = vec![0f32; rows * head.rows()];
    let (x, store) = (x.numbers()?, Store::Replace);
    match head {
        TokenMatrix::Packed(head) => multiply(head, Side::EachRow, x, rows, &mut out, store)?,
        TokenMatrix::Dense(head) if head.tensor().dtype() == DType::F32 => {
            let head = lend(head.tensor());
            let numbers = head.numbers()?;
            let whole = linear::Whole { numbers, width };
            multiply(&whole, Side::EachRow, x, rows, &mut out, store)?;
        }
        TokenMatrix::Dense(head) => {
            let half = linear::Half(head.tensor());
            multiply(&half, Side::EachRow, x, rows, &mut out, store)?;
        }
    }
    Ok(Tensor::from_vec(out, (rows, head.rows()), &Device::Cpu)?)
}

/// Calls `f` with the norm's weight in f32.
fn with_weight<T>(norm: &RmsNorm, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let weight = norm.weight().to_dtype(DType::F32)?;
    let weight = lend(&weight);
    Ok(f(weight.numbers()?))
}

impl Ops for Cpu {
    type Array = Vec<f32>;
    /// Gate and up.
    type Pair = [Vec<f32>; 2];
    type Low = Vec<LowRank>;
    type Softmax = ();

    fn keep_rows_apart(&mut self) {
        self.side = Side::EachRow;
    }

    fn array(&mut self, x: &Tensor) -> Result<Vec<f32>> {
        let x = x.to_dtype(DType::F32)?.contiguous()?;
        Ok(lend(&x).numbers()?.to_vec())
    }

    fn tensor(&self, x: &Vec<f32>, dims: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_slice(x, dims, &Device::Cpu)?)
    }

    fn copy(&mut self, x: &Vec<f32>) -> Result<Vec<f32>> {
        let mut copy = self.space.take(x.len());
        copy.copy_from_slice(x);
        Ok(copy)
    }

    fn recycle(&mut self, arrays: impl IntoIterator<Item = Vec<f32>>) {
        arrays.into_iter().for_each(|array| self.space.give(array));
    }

    fn recycle_pair(&mut self, pair: [Vec<f32>; 2]) {
        self.space.give_all(pair);
    }

    fn rms_norm(&mut self, norm: &RmsNorm, x: &Vec<f32>) -> Result<Vec<f32>> {
        let _part = tracing::trace_span!("rms-norm").entered();
        let mut out = self.space.take(x.len());
        with_weight(norm, |weight| {
            norm::normalise(x, weight, norm.eps(), &mut out);
        })?;
        round_all(self.dtype, &mut out);
        Ok(out)
    }

    fn rms_norm_and_copy(&mut self, norm: &RmsNorm, x: &Vec<f32>) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok((self.rms_norm(norm, x)?, self.copy(x)?))
    }

    fn rms_norm_gradient(
        &mut self,
        norm: &RmsNorm,
        x: &Vec<f32>,
        grad: &Vec<f32>,
        stream: Option<Vec<f32>>,
        gradients: &mut Gradients,
    ) -> Result<Vec<f32>> {
        self.rms_norm_weight_gradient(norm, x, grad, gradients)?;
        let _part = tracing::trace_span!("rms-norm").entered();
        let add = stream.is_some();
        let mut out = stream.unwrap_or_else(|| self.space.take(x.len()));
        with_weight(norm, |weight| {
            norm::input_gradient(x, weight, grad, norm.eps(), add, &mut out);
        })?;
        Ok(out)
    }

    fn rms_norm_weight_gradient(
        &mut self,
        norm: &RmsNorm,
        x: &Vec<f32>,
        grad: &Vec<f32>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Some(var) = norm.var() else {
            return Ok(());
        };
        let size = var.elem_count();
        let sum = norm::weight_gradient(x, grad, norm.eps(), size);
        norm.add_gradient(&Tensor::from_vec(sum, size, &Device::Cpu)?, gradients)
    }

    fn project(
        &mut self,
        attention: &Attention,
        x: &Vec<f32>,
        angles: &Angles,
    ) -> Result<Projected<Self>> {
        let dims = attention.dims();
        let [q, k, v, _] = attention.linears();
        let ([mut q, mut k, v], low) = self.linears([q, k, v], x)?;
        let mut before_norms = None;
        if let Some([q_norm, k_norm]) = attention.head_norms() {
            let (normed_q, normed_k) = (self.rms_norm(q_norm, &q)?, self.rms_norm(k_norm, &k)?);
            before_norms = Some([
                std::mem::replace(&mut q, normed_q),
                std::mem::replace(&mut k, normed_k),
            ]);
        }
        if attention.turned() {
            let _part = tracing::trace_span!("rope").entered();
            for (x, heads) in [(&mut q, dims.heads), (&mut k, dims.key_value_heads)] {
                rope::turn(x, heads, angles, false)?;
                round_all(self.dtype, x);
            }
        }
        Ok(Projected {
            heads: Heads { q, k, v },
            before_norms,
            low,
        })
    }

    fn project_gradient(
        &mut self,
        attention: &Attention,
        (x, before_norms, low): (&Vec<f32>, BeforeNorms<Vec<f32>>, Vec<LowRank>),
        angles: &Angles,
        grad: Heads<Vec<f32>>,
        wanted: bool,
        gradients: &mut Gradients,
    ) -> Result<Option<Vec<f32>>> {
        let Heads {
            q: mut to_q,
            k: mut to_k,
            v: to_v,
        } = grad;
        let dims = attention.dims();
        if attention.turned() {
            let _part = tracing::trace_span!("rope").entered();
            rope::turn(&mut to_q, dims.heads, angles, true)?;
            rope::turn(&mut to_k, dims.key_value_heads, angles, true)?;
        }
        if let (Some([q_norm, k_norm]), Some([q, k])) = (attention.head_norms(), before_norms) {
            to_q = self.head_norm_gradient(q_norm, q, to_q, gradients)?;
            to_k = self.head_norm_gradient(k_norm, k, to_k, gradients)?;
        }
        let [q, k, v, _] = attention.linears();
        let grads = [to_q, to_k, to_v];
        self.linears_gradient([q, k, v], x, low, grads, wanted, gradients)
    }

    fn attention(
        &mut self,
        dims: Dims,
        spans: &[Span],
        Heads { q, k, v }: &Heads<Vec<f32>>,
    ) -> Result<(Vec<f32>, ())> {
        let _part = tracing::trace_span!("attention, forward").entered();
        let mut out = self.space.take(q.len());
        attention::forward(dims, spans, (q, k, v), &mut out);
        round_all(self.dtype, &mut out);
        Ok((out, ()))
    }

    fn attention_in_cache(
        &mut self,
        dims: Dims,
        spans: &[Span],
        Heads { q, k, v }: &Heads<Vec<f32>>,
        cache: &LayerCache,
    ) -> Result<(Vec<f32>, ())> {
        let _part = tracing::trace_span!("attention, forward").entered();
        let width = dims.key_value_heads * dims.head_dim;
        let rows = |x: &[f32]| Tensor::from_slice(x, (x.len() / width, width), &Device::Cpu);
        cache.write(spans, &rows(k)?, &rows(v)?)?;
        let (k, v) = (lend(&cache.k), lend(&cache.v));
        let mut out = self.space.take(q.len());
        attention::forward(dims, spans, (q, k.numbers()?, v.numbers()?), &mut out);
        round_all(self.dtype, &mut out);
        Ok((out, ()))
    }

    fn attention_gradient(
        &mut self,
        dims: Dims,
        spans: &[Span],
        Heads { q, k, v }: &Heads<Vec<f32>>,
        _: (&Vec<f32>, &()),
        grad: &Vec<f32>,
    ) -> Result<Heads<Vec<f32>>> {
        let _part = tracing::trace_span!("attention, backward").entered();
        Ok(attention::backward(dims, spans, (q, k, v), grad))
    }

    fn add_linear(
        &mut self,
        linear: &Linear,
        x: &Vec<f32>,
        stream: &mut Vec<f32>,
    ) -> Result<Vec<LowRank>> {
        let low = linear::apply(linear, x, stream, Store::Add, self.side)?;
        Ok(vec![low])
    }

    fn add_linear_gradient(
        &mut self,
        linear: &Linear,
        x: &Vec<f32>,
        low: Option<Vec<LowRank>>,
        stream: &Vec<f32>,
        gradients: &mut Gradients,
    ) -> Result<Vec<f32>> {
        let mut to_x = self.space.take(x.len());
        let low = low.and_then(|mut low| low.pop());
        let into = Some((&mut to_x[..], Store::Replace));
        linear::pull_back(linear, x, low, stream, into, gradients)?;
        Ok(to_x)
    }

    fn gate_up(&mut self, mlp: &Mlp, x: &Vec<f32>) -> Result<([Vec<f32>; 2], Vec<LowRank>)> {
        let [gate, up, _] = mlp.linears();
        self.linears([gate, up], x)
    }

    fn gate_up_gradient(
        &mut self,
        mlp: &Mlp,
        x: &Vec<f32>,
        low: Vec<LowRank>,
        grad: [Vec<f32>; 2],
        gradients: &mut Gradients,
    ) -> Result<Vec<f32>> {
        let [gate, up, _] = mlp.linears();
        let to_x = self.linears_gradient([gate, up], x, low, grad, true, gradients)?;
        Ok(to_x.unwrap_or_default())
    }

    fn swiglu(&mut self, [gate, up]: &[Vec<f32>; 2]) -> Result<Vec<f32>> {
        let _part = tracing::trace_span!("swiglu").entered();
        let mut out = self.space.take(gate.len());
        swiglu::gate_all(gate, up, &mut out);
        round_all(self.dtype, &mut out);
        Ok(out)
    }

    fn swiglu_gradient(
        &mut self,
        [gate, up]: [Vec<f32>; 2],
        grad: Vec<f32>,
    ) -> Result<[Vec<f32>; 2]> {
        let _part = tracing::trace_span!("swiglu").entered();
        let (mut to_gate, mut to_up) = (self.space.take(gate.len()), self.space.take(up.len()));
        swiglu::gate_gradient((&gate, &up), &grad, (&mut to_gate, &mut to_up));
        self.space.give_all([gate, up, grad]);
        Ok([to_gate, to_up])
    }
}
