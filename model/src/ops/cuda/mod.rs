//! Provides a layer's operations on a card: kernels for what stands between products, cuBLAS for those, in f32, bf16 or f16.
//!
//! Nothing waits for the card, and nothing is copied to the host.

mod adapters;
mod attention;
mod linear;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use candle_core::{DType, Device, Tensor};
use distill_kernels::{Machine, Matrix, Product, device, layers};

use crate::attention::Attention;
use crate::kv_cache::LayerCache;
use crate::mlp::Mlp;
use crate::norm::RmsNorm;
use crate::ops::{BeforeNorms, Dims, Heads, Ops, Projected, Span};
use crate::rope::Angles;
use crate::{Decoder, Gradients, Linear, Parameter, Result};
use adapters::Adapters;
use attention::Plan;
use linear::width;

/// The operations of one pass, with what its layers share.
#[derive(Debug)]
pub(crate) struct Cuda {
    machine: Machine,
    /// The activations' type.
    dtype: DType,
    adapters: Adapters,
    /// What attention needs of the positions, by the layers' window.
    plans: HashMap<Option<usize>, Plan>,
}

impl Cuda {
    pub(crate) fn new(decoder: &Decoder) -> Result<Self> {
        Self::on(device::MACHINE, decoder)
    }

    pub(crate) fn on(machine: Machine, decoder: &Decoder) -> Result<Self> {
        Ok(Self {
            machine,
            dtype: decoder.dtype(),
            adapters: Adapters::of(decoder, machine)?,
            plans: HashMap::new(),
        })
    }

    /// Without adapters.
    #[cfg(test)]
    fn bare(machine: Machine, dtype: DType) -> Self {
        Self {
            machine,
            dtype,
            adapters: Adapters::default(),
            plans: HashMap::new(),
        }
    }

    fn multiply(&self, product: Product<'_>) -> Result<()> {
        Ok((self.machine.multiply)(&product)?)
    }

    /// Memory that nobody wrote yet, where `like` is.
    fn fresh(&self, like: &Tensor, shape: (usize, usize), dtype: DType) -> Result<Tensor> {
        let output = [(dtype, shape.0 * shape.1)];
        let made = (self.machine.compute)(&[like], &output, &|_, _| Ok(Vec::new()))?;
        Ok(made[0].reshape(shape)?)
    }

    /// One call with outputs of these types and shapes.
    fn call<const COUNT: usize>(
        &self,
        inputs: &[&Tensor],
        outputs: [(DType, (usize, usize)); COUNT],
        call: impl Fn(&[usize], &[usize]) -> candle_core::Result<distill_kernels::Call>,
    ) -> Result<[Tensor; COUNT]> {
        let flat = outputs.map(|(dtype, (rows, columns))| (dtype, rows * columns));
        let calls = |x: &[usize], out: &[usize]| Ok(vec![call(x, out)?]);
        let made = (self.machine.compute)(inputs, &flat, &calls)?;
        let mut shaped = Vec::with_capacity(COUNT);
        for (tensor, (_, shape)) in made.iter().zip(outputs) {
            shaped.push(tensor.reshape(shape)?);
        }
        shaped
            .try_into()
            .map_err(|_| crate::Error::Input(format!("{COUNT} outputs were asked for")))
    }

    fn plan(&mut self, dims: Dims, spans: &[Span], device: &Device) -> Result<&Plan> {
        Ok(match self.plans.entry(dims.window) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Plan::new(dims, spans, device)?),
        })
    }

    /// One head norm's way back.
    fn head_norm_gradient(
        &mut self,
        norm: &RmsNorm,
        before: &Tensor,
        grad: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        self.rms_norm_weight_gradient(norm, before, grad, gradients)?;
        self.norm_gradient(norm, before, grad, None, grad.dtype())
    }

    fn norm_gradient(
        &self,
        norm: &RmsNorm,
        x: &Tensor,
        grad: &Tensor,
        before: Option<&Tensor>,
        to: DType,
    ) -> Result<Tensor> {
        let size = norm.weight().elem_count();
        let rows = x.elem_count() / size;
        let mut inputs = vec![x, norm.weight(), grad];
        inputs.extend(before);
        let [out] = self.call(&inputs, [(to, x.dims2()?)], |x, out| {
            let before = x.get(3).copied();
            layers::rms_norm_gradient([x[0], x[1], x[2]], before, out[0], (rows, size), norm.eps())
        })?;
        Ok(out)
    }
}

/// The sizes of heads, the tables being inputs `tables`.
fn heads_of(
    attention: &Attention,
    angles: &Angles,
    rows: usize,
    tables: [usize; 2],
) -> layers::Heads {
    let dims = attention.dims();
    layers::Heads {
        rows,
        positions: angles.positions,
        heads: dims.heads,
        key_heads: dims.key_value_heads,
        half: dims.head_dim / 2,
        // Heads with norms are turned after these.
        turned: attention.turned() && attention.head_norms().is_none(),
        tables,
    }
}

impl Ops for Cuda {
    type Array = Tensor;
    /// Gate beside up: [N, 2 ff].
    type Pair = Tensor;
    type Low = Option<Tensor>;
    /// logsumexp [H, N].
    type Softmax = Tensor;

    // cuBLAS chooses a product's order by its shape.
    fn keep_rows_apart(&mut self) {}

    fn array(&mut self, x: &Tensor) -> Result<Tensor> {
        let width = x.dims().last().copied().unwrap_or(1);
        Ok(x.reshape(((), width))?.contiguous()?)
    }

    fn tensor(&self, x: &Tensor, dims: &[usize]) -> Result<Tensor> {
        Ok(x.reshape(dims)?)
    }

    fn copy(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.copy()?)
    }

    fn recycle(&mut self, _: impl IntoIterator<Item = Tensor>) {}

    fn recycle_pair(&mut self, _: Tensor) {}

    fn rms_norm(&mut self, norm: &RmsNorm, x: &Tensor) -> Result<Tensor> {
        let size = norm.weight().elem_count();
        let rows = x.elem_count() / size;
        let inputs = [x, norm.weight()];
        let [out] = self.call(&inputs, [(self.dtype, x.dims2()?)], |x, out| {
            layers::rms_norm(x[0], x[1], (out[0], None), (rows, size), norm.eps())
        })?;
        Ok(out)
    }

    fn rms_norm_and_copy(&mut self, norm: &RmsNorm, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let shape = x.dims2()?;
        let inputs = [x, norm.weight()];
        let outputs = [(self.dtype, shape), (x.dtype(), shape)];
        let [out, copy] = self.call(&inputs, outputs, |x, out| {
            layers::rms_norm(x[0], x[1], (out[0], Some(out[1])), shape, norm.eps())
        })?;
        Ok((out, copy))
    }

    fn rms_norm_gradient(
        &mut self,
        norm: &RmsNorm,
        x: &Tensor,
        grad: &Tensor,
        stream: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        self.rms_norm_weight_gradient(norm, x, grad, gradients)?;
        self.norm_gradient(norm, x, grad, stream.as_ref(), DType::F32)
    }

    fn rms_norm_weight_gradient(
        &mut self,
        norm: &RmsNorm,
        x: &Tensor,
        grad: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Some(var) = norm.var() else {
            return Ok(());
        };
        let size = var.elem_count();
        let shape = (x.elem_count() / size, size);
        let [terms] = self.call(&[x, grad], [(DType::F32, shape)], |x, out| {
            layers::rms_norm_terms(x[0], x[1], out[0], shape, norm.eps())
        })?;
        let sum = self.sum_of_rows(Matrix::of(&terms)?, &terms)?;
        norm.add_gradient(&sum, gradients)
    }

    fn project(
        &mut self,
        attention: &Attention,
        x: &Tensor,
        angles: &Angles,
    ) -> Result<Projected<Self>> {
        let [q, k, v, _] = attention.linears();
        let linears = [q, k, v];
        let dims = attention.dims();
        let rows = x.dim(0)?;
        let biases = linears.map(|linear| linear.bias().map(Parameter::tensor));
        // Qwen2's key biases are large: a product that is rounded before they are added loses what the sum could still hold.
        let wide = if biases.iter().any(Option::is_some) {
            DType::F32
        } else {
            self.dtype
        };
        let y = self.fresh(x, (rows, width(&linears)), wide)?;
        let low = self.linears(&linears, x, &y, false)?;
        let mut inputs = vec![&y, &angles.cos, &angles.sin];
        if let [Some(q), Some(k), Some(v)] = biases {
            inputs.extend([q, k, v]);
        }
        let (queries, keys) = (
            dims.heads * dims.head_dim,
            dims.key_value_heads * dims.head_dim,
        );
        let outputs = [queries, keys, keys].map(|columns| (self.dtype, (rows, columns)));
        let [mut q, mut k, v] = self.call(&inputs, outputs, |x, out| {
            let heads = heads_of(attention, angles, rows, [x[1], x[2]]);
            let biases = x.get(3..6).map(|x| [x[0], x[1], x[2]]);
            heads.split(x[0], biases, [out[0], out[1], out[2]])
        })?;
        let mut before_norms = None;
        if let Some([q_norm, k_norm]) = attention.head_norms() {
            let normed = [self.rms_norm(q_norm, &q)?, self.rms_norm(k_norm, &k)?];
            before_norms = Some([q, k]);
            [q, k] = normed;
            if attention.turned() {
                q = self.turned(attention, angles, &q, 1.0)?;
                k = self.turned(attention, angles, &k, 1.0)?;
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
        (x, before_norms, low): (&Tensor, BeforeNorms<Tensor>, Option<Tensor>),
        angles: &Angles,
        grad: Heads<Tensor>,
        wanted: bool,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let Heads {
            q: mut to_q,
            k: mut to_k,
            v: to_v,
        } = grad;
        if let (Some([q_norm, k_norm]), Some([q, k])) = (attention.head_norms(), &before_norms) {
            if attention.turned() {
                to_q = self.turned(attention, angles, &to_q, -1.0)?;
                to_k = self.turned(attention, angles, &to_k, -1.0)?;
            }
            to_q = self.head_norm_gradient(q_norm, q, &to_q, gradients)?;
            to_k = self.head_norm_gradient(k_norm, k, &to_k, gradients)?;
        }
        let [q, k, v, _] = attention.linears();
        let linears = [q, k, v];
        let rows = x.dim(0)?;
        let inputs = [&to_q, &to_k, &to_v, &angles.cos, &angles.sin];
        let output = [(self.dtype, (rows, width(&linears)))];
        let [dy] = self.call(&inputs, output, |x, out| {
            let heads = heads_of(attention, angles, rows, [x[3], x[4]]);
            heads.join([x[0], x[1], x[2]], out[0])
        })?;
        let to = wanted.then_some(DType::F32);
        self.linears_gradient(&linears, (x, low), &dy, to, gradients)
    }

    fn attention(
        &mut self,
        dims: Dims,
        spans: &[Span],
        Heads { q, k, v }: &Heads<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        self.attention_of(dims, spans, [q, k, v])
    }

    fn attention_in_cache(
        &mut self,
        dims: Dims,
        spans: &[Span],
        Heads { q, k, v }: &Heads<Tensor>,
        cache: &LayerCache,
    ) -> Result<(Tensor, Tensor)> {
        cache.write(spans, k, v)?;
        self.attention_of(dims, spans, [q, &cache.k, &cache.v])
    }

    fn attention_gradient(
        &mut self,
        dims: Dims,
        spans: &[Span],
        Heads { q, k, v }: &Heads<Tensor>,
        (out, logsumexp): (&Tensor, &Tensor),
        grad: &Tensor,
    ) -> Result<Heads<Tensor>> {
        let (machine, dtype) = (self.machine, self.dtype);
        let plan = self.plan(dims, spans, q.device())?;
        let mut inputs = vec![q, k, v, out, logsumexp, grad];
        inputs.extend(plan.ranges());
        let outputs = plan.backward_outputs(dtype);
        let made = (machine.compute)(&inputs, &outputs, &|x, out| plan.backward(x, out))?;
        Ok(Heads {
            q: made[0].reshape(q.shape())?,
            k: made[1].reshape(k.shape())?,
            v: made[2].reshape(v.shape())?,
        })
    }

    fn add_linear(
        &mut self,
        linear: &Linear,
        x: &Tensor,
        stream: &mut Tensor,
    ) -> Result<Option<Tensor>> {
        let low = self.linears(&[linear], x, stream, true)?;
        if let Some(bias) = linear.bias() {
            *stream = stream.broadcast_add(&bias.tensor().detach().to_dtype(DType::F32)?)?;
        }
        Ok(low)
    }

    fn add_linear_gradient(
        &mut self,
        linear: &Linear,
        x: &Tensor,
        low: Option<Option<Tensor>>,
        stream: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let low = match low {
            Some(low) => low,
            None => self.low(&[linear], x)?,
        };
        let grad = stream.to_dtype(self.dtype)?;
        let to = Some(self.dtype);
        let to_x = self.linears_gradient(&[linear], (x, low), &grad, to, gradients)?;
        to_x.ok_or_else(|| crate::Error::Input("a gradient that was asked for is missing".into()))
    }

    fn gate_up(&mut self, mlp: &Mlp, x: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let [gate, up, _] = mlp.linears();
        let linears = [gate, up];
        let y = self.fresh(x, (x.dim(0)?, width(&linears)), self.dtype)?;
        let low = self.linears(&linears, x, &y, false)?;
        let biases = linears.map(|linear| linear.bias().map(Parameter::tensor));
        let y = match biases {
            [Some(gate), Some(up)] => {
                let bias = Tensor::cat(&[gate.detach(), up.detach()], 0)?;
                y.broadcast_add(&bias.to_dtype(self.dtype)?)?
            }
            _ => y,
        };
        Ok((y, low))
    }

    fn gate_up_gradient(
        &mut self,
        mlp: &Mlp,
        x: &Tensor,
        low: Option<Tensor>,
        grad: Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let [gate, up, _] = mlp.linears();
        let to = Some(DType::F32);
        let to_x = self.linears_gradient(&[gate, up], (x, low), &grad, to, gradients)?;
        to_x.ok_or_else(|| crate::Error::Input("a gradient that was asked for is missing".into()))
    }

    fn swiglu(&mut self, pair: &Tensor) -> Result<Tensor> {
        let (rows, both) = pair.dims2()?;
        let shape = (rows, both / 2);
        let [out] = self.call(&[pair], [(self.dtype, shape)], |x, out| {
            layers::swiglu(x[0], out[0], shape)
        })?;
        Ok(out)
    }

    fn swiglu_gradient(&mut self, pair: Tensor, grad: Tensor) -> Result<Tensor> {
        let (rows, both) = pair.dims2()?;
        let inputs = [&pair, &grad];
        let [out] = self.call(&inputs, [(self.dtype, (rows, both))], |x, out| {
            layers::swiglu_gradient(x[0], x[1], out[0], (rows, both / 2))
        })?;
        Ok(out)
    }
}

impl Cuda {
    fn attention_of(
        &mut self,
        dims: Dims,
        spans: &[Span],
        heads: [&Tensor; 3],
    ) -> Result<(Tensor, Tensor)> {
        let (machine, dtype) = (self.machine, self.dtype);
        let [q, ..] = heads;
        let plan = self.plan(dims, spans, q.device())?;
        let inputs = [&heads[..], &plan.ranges()].concat();
        let outputs = plan.forward_outputs(dtype);
        let made = (machine.compute)(&inputs, &outputs, &|x, out| plan.forward(x, out))?;
        Ok((made[0].reshape(q.shape())?, made[1].clone()))
    }

    /// Heads turned by their positions, or back.
    fn turned(
        &self,
        attention: &Attention,
        angles: &Angles,
        x: &Tensor,
        sign: f32,
    ) -> Result<Tensor> {
        let (rows, columns) = x.dims2()?;
        let heads = columns / attention.dims().head_dim;
        let inputs = [x, &angles.cos, &angles.sin];
        let [out] = self.call(&inputs, [(self.dtype, (rows, columns))], |x, out| {
            let sizes = heads_of(attention, angles, rows, [x[1], x[2]]);
            sizes.rope(heads, x[0], out[0], sign)
        })?;
        Ok(out)
    }
}
