/*! Provides the operations that a decoder layer is made of, each with its gradient: one interface, implemented on the CPU and on a card.

```text
 layer.rs ── Ops ─┬─ cpu/   f32 on slices, in place; the reference for speed and bits
                  └─ cuda/  kernels and cuBLAS, in f32, bf16 or f16
```

The residual stream and its gradient are f32 in both. What lies between two products is in the activations' type: a card stores
it so, the CPU rounds to it. Nothing else asks where a layer is computed.
*/

pub(crate) mod cpu;
pub(crate) mod cuda;
pub(crate) mod head;
pub(crate) mod squares;

use candle_core::Tensor;

use crate::attention::Attention;
use crate::kv_cache::LayerCache;
use crate::mlp::Mlp;
use crate::norm::RmsNorm;
use crate::rope::Angles;
use crate::{Gradients, Linear, Result};

/// Queries, keys and values, or their gradients: [rows, heads, head_dim] each.
#[derive(Debug)]
pub(crate) struct Heads<Array> {
    pub(crate) q: Array,
    pub(crate) k: Array,
    pub(crate) v: Array,
}

/// Queries and keys as their products made them, where the model norms its heads.
pub(crate) type BeforeNorms<Array> = Option<[Array; 2]>;

/// What the projections to heads make, for attention and for their own way back.
#[derive(Debug)]
pub(crate) struct Projected<O: Ops + ?Sized> {
    /// Turned by their positions.
    pub(crate) heads: Heads<O::Array>,
    pub(crate) before_norms: BeforeNorms<O::Array>,
    /// What the adapters' gradients need.
    pub(crate) low: O::Low,
}

/// Rows that attend to each other: one sequence of a batch, or one document of a packed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// First row in q.
    pub(crate) first_query: usize,
    /// The last `queries` of the `keys` positions.
    pub(crate) queries: usize,
    /// First row in k and v.
    pub(crate) first_key: usize,
    pub(crate) keys: usize,
}

impl Span {
    /// `batch` sequences of `queries` positions that follow earlier ones.
    pub(crate) fn batch(batch: usize, queries: usize, keys: usize) -> Vec<Self> {
        (0..batch)
            .map(|index| Self {
                first_query: index * queries,
                queries,
                first_key: index * keys,
                keys,
            })
            .collect()
    }

    /// Documents of these lengths, one after another.
    pub(crate) fn documents(lengths: &[usize]) -> Vec<Self> {
        let starts = lengths.iter().scan(0, |next, length| {
            let start = *next;
            *next += length;
            Some((start, *length))
        });
        starts
            .map(|(start, length)| Self {
                first_query: start,
                queries: length,
                first_key: start,
                keys: length,
            })
            .collect()
    }
}

/// Sizes of one attention: all tensors are [rows, heads, head_dim].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dims {
    pub(crate) heads: usize,
    pub(crate) key_value_heads: usize,
    pub(crate) head_dim: usize,
    /// The number of latest positions that one attends to, itself included; `None` for its whole past.
    pub(crate) window: Option<usize>,
}

impl Dims {
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// The operations of a layer on rows of numbers. `N` is the number of rows, all positions of all sequences.
///
/// Gradients of what is trained are added to the [`Gradients`] given; those in inputs are returned.
pub(crate) trait Ops: std::fmt::Debug {
    /// Rows of numbers: the residual stream in f32, or activations.
    type Array: std::fmt::Debug;
    /// Gate and up of an MLP, or their gradients.
    type Pair: std::fmt::Debug;
    /// `x A^T` of the adapters that read one input, for their gradients.
    type Low: std::fmt::Debug;
    /// What attention keeps of its softmax.
    type Softmax: std::fmt::Debug;

    /// From now on a row's numbers are summed in an order that does not depend on how many rows there are, where this backend can:
    /// for passes forward.
    fn keep_rows_apart(&mut self);

    /// Takes over a tensor [.., d].
    fn array(&mut self, x: &Tensor) -> Result<Self::Array>;

    /// The numbers as a tensor of these dimensions.
    fn tensor(&self, x: &Self::Array, dims: &[usize]) -> Result<Tensor>;

    /// A copy.
    fn copy(&mut self, x: &Self::Array) -> Result<Self::Array>;

    /// Takes buffers back that nobody needs any more.
    fn recycle(&mut self, arrays: impl IntoIterator<Item = Self::Array>);

    /// As [`recycle`](Self::recycle).
    fn recycle_pair(&mut self, pair: Self::Pair);

    /// `w x / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019), as activations.
    ///
    /// # Shapes
    /// x [N, d] -> [N, d]
    fn rms_norm(&mut self, norm: &RmsNorm, x: &Self::Array) -> Result<Self::Array>;

    /// As [`rms_norm`](Self::rms_norm), and a copy of x for what is added to it next.
    fn rms_norm_and_copy(
        &mut self,
        norm: &RmsNorm,
        x: &Self::Array,
    ) -> Result<(Self::Array, Self::Array)>;

    /// dL/dx of [`rms_norm`](Self::rms_norm) from dL/dy, added to `stream` where there is one, else new.
    fn rms_norm_gradient(
        &mut self,
        norm: &RmsNorm,
        x: &Self::Array,
        grad: &Self::Array,
        stream: Option<Self::Array>,
        gradients: &mut Gradients,
    ) -> Result<Self::Array>;

    /// What is trained in a norm, where nothing below it wants a gradient.
    fn rms_norm_weight_gradient(
        &mut self,
        norm: &RmsNorm,
        x: &Self::Array,
        grad: &Self::Array,
        gradients: &mut Gradients,
    ) -> Result<()>;

    /// Queries, keys and values of x: products, biases, norms of heads, rotary positions.
    ///
    /// # Shapes
    /// x [N, d]
    fn project(
        &mut self,
        attention: &Attention,
        x: &Self::Array,
        angles: &Angles,
    ) -> Result<Projected<Self>>;

    /// The way back of [`project`](Self::project), from its input and what it kept of that: dL/dx [N, d], where it is wanted.
    fn project_gradient(
        &mut self,
        attention: &Attention,
        kept: (&Self::Array, BeforeNorms<Self::Array>, Self::Low),
        angles: &Angles,
        grad: Heads<Self::Array>,
        wanted: bool,
        gradients: &mut Gradients,
    ) -> Result<Option<Self::Array>>;

    /// Each query's average of the values that it sees, by the softmax of `q k / sqrt(head_dim)`: the keys of its span up to its
    /// own position, within the window. Query head h reads key head `h / (H / KV)`.
    ///
    /// # Shapes
    /// -> [N, H head_dim]
    fn attention(
        &mut self,
        dims: Dims,
        spans: &[Span],
        heads: &Heads<Self::Array>,
    ) -> Result<(Self::Array, Self::Softmax)>;

    /// As [`attention`](Self::attention), over the keys and values that `cache` holds, to which those of `heads` are added first.
    /// Spans count keys in the cache, and are in its order.
    fn attention_in_cache(
        &mut self,
        dims: Dims,
        spans: &[Span],
        heads: &Heads<Self::Array>,
        cache: &LayerCache,
    ) -> Result<(Self::Array, Self::Softmax)>;

    /// The way back of [`attention`](Self::attention), from its output and dL/d output.
    fn attention_gradient(
        &mut self,
        dims: Dims,
        spans: &[Span],
        heads: &Heads<Self::Array>,
        made: (&Self::Array, &Self::Softmax),
        grad: &Self::Array,
    ) -> Result<Heads<Self::Array>>;

    /// Adds `x W^T + bias + scale (x A^T) B^T` to the stream; what the adapter's gradient needs.
    ///
    /// # Shapes
    /// x [N, in], stream [N, out]
    fn add_linear(
        &mut self,
        linear: &Linear,
        x: &Self::Array,
        stream: &mut Self::Array,
    ) -> Result<Self::Low>;

    /// The way back of [`add_linear`](Self::add_linear): dL/dx as activations, from the stream's gradient. `low` is computed
    /// where it was not kept.
    fn add_linear_gradient(
        &mut self,
        linear: &Linear,
        x: &Self::Array,
        low: Option<Self::Low>,
        stream: &Self::Array,
        gradients: &mut Gradients,
    ) -> Result<Self::Array>;

    /// Gate and up of x [N, d].
    fn gate_up(&mut self, mlp: &Mlp, x: &Self::Array) -> Result<(Self::Pair, Self::Low)>;

    /// The way back of [`gate_up`](Self::gate_up): dL/dx [N, d].
    fn gate_up_gradient(
        &mut self,
        mlp: &Mlp,
        x: &Self::Array,
        low: Self::Low,
        grad: Self::Pair,
        gradients: &mut Gradients,
    ) -> Result<Self::Array>;

    /// `silu(gate) up` (Shazeer 2020): [N, ff].
    fn swiglu(&mut self, pair: &Self::Pair) -> Result<Self::Array>;

    /// The way back of [`swiglu`](Self::swiglu).
    fn swiglu_gradient(&mut self, pair: Self::Pair, grad: Self::Array) -> Result<Self::Pair>;
}

/// Evaluates a body with the operations of the device that a decoder is on.
macro_rules! with_ops {
    ($decoder:expr, $ops:ident => $body:expr) => {
        match $decoder.device() {
            candle_core::Device::Cuda(_) => {
                #[allow(unused_mut)]
                let mut $ops = $crate::ops::cuda::Cuda::new($decoder)?;
                $body
            }
            _ => {
                #[allow(unused_mut)]
                let mut $ops = $crate::ops::cpu::Cpu::new($decoder.dtype());
                $body
            }
        }
    };
}
pub(crate) use with_ops;
