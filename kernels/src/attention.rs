//! Provides the calls of causal attention with grouped query heads: `out = softmax(scale q k^T) v` over the keys that each query sees,
//! and its gradients, without a matrix of scores in memory.

use candle_core::{DType, Result};

use crate::{ATTENTION, Call, Launch};

/// Elements of a head at most.
pub const HEAD_DIM_MAX: usize = 128;

const WARPS: usize = 4;
const WARP: usize = 32;
/// Queries of a warp, forward, and queries or keys of a warp on the way back; see attention.cu.
const ROWS: usize = 8;
const GRADIENT_ROWS: usize = 6;

/// Whether the kernels take heads of this many elements: whole quads, one a lane at most.
pub fn takes(head_dim: usize) -> bool {
    head_dim.is_multiple_of(4) && (4..=HEAD_DIM_MAX).contains(&head_dim)
}

/// Sizes of q [queries, heads, head_dim] and of k and v [keys, key_heads, head_dim].
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Rows of q.
    pub queries: usize,
    /// Rows of k and v.
    pub keys: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads, each shared by `heads / key_heads` query heads.
    pub key_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// What scores are multiplied with.
    pub scale: f32,
}

/// Buffers of u32: row i reaches from `first[i]` to before `end[i]`, and neither falls from row to row.
#[derive(Debug, Clone, Copy)]
pub struct Ranges {
    /// The first row seen.
    pub first: usize,
    /// The row after the last one seen.
    pub end: usize,
}

/// What a pass back is given: buffers of the forward pass, and the gradient of its output.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// q, k and v.
    pub inputs: [usize; 3],
    /// The output.
    pub out: usize,
    /// f32 [heads, queries].
    pub logsumexp: usize,
    /// dL/dout, as the output.
    pub grad: usize,
}

impl Sizes {
    fn quads(&self) -> usize {
        self.head_dim / 4
    }

    /// A block for `rows` rows of one head, with `tiles` tiles of them and one of columns in shared memory.
    fn launch(&self, count: usize, heads: usize, rows: usize, tiles: usize) -> Launch {
        let quads = tiles * rows * self.quads() + WARP * self.column_quads();
        Launch {
            grid: [count.div_ceil(rows), heads, 1],
            block: WARPS * WARP,
            shared: quads * 4 * size_of::<f32>(),
        }
    }

    /// Quads that a column takes in shared memory, without two lanes in one bank: see attention.cu.
    fn column_quads(&self) -> usize {
        match self.quads() {
            quads if quads.is_multiple_of(8) => quads,
            quads => quads | 1,
        }
    }

    /// Types and lengths of the scratch of [`backward`]: what the softmax's gradient subtracts, and what each query head adds to
    /// the gradients in k and v.
    pub fn scratch(&self) -> [(DType, usize); 2] {
        let along = self.queries * self.heads;
        let parts = 2 * self.keys * self.heads * self.head_dim;
        [(DType::F32, along), (DType::F32, parts)]
    }

    /// Heads, key heads and quads: counts of one layer.
    fn heads(&self, call: Call) -> Call {
        let call = call.int(self.heads as i32).int(self.key_heads as i32);
        call.int(self.quads() as i32)
    }
}

impl Ranges {
    fn of(self, call: Call) -> Call {
        call.buffer(self.first, DType::U32)
            .buffer(self.end, DType::U32)
    }
}

/// The output, and the logarithm of each softmax's denominator.
///
/// # Shapes
/// out as q, logsumexp f32 [heads, queries]; `seen` says which keys a query sees: one at least
///
/// # Errors
/// When the head size is not one that the kernel [`takes`], or a grid would be too large.
pub fn forward(
    sizes: Sizes,
    [q, k, v]: [usize; 3],
    seen: Ranges,
    (out, logsumexp): (usize, usize),
) -> Result<Call> {
    let launch = sizes.launch(sizes.queries, sizes.heads, WARPS * ROWS, 1);
    let call = Call::new(&ATTENTION, "attention", launch)?;
    let call = seen.of(call.floats(q).floats(k).floats(v)).floats(out);
    let call = call.buffer(logsumexp, DType::F32).size(sizes.queries);
    Ok(sizes.heads(call).float(sizes.scale))
}

/// Gradients in q, k and v, into buffers shaped as these.
///
/// # Shapes
/// `seen`: which keys a query sees; `seen_by`: which queries see a key; `along` and `parts`: [`Sizes::scratch`]
///
/// # Errors
/// As [`forward`].
pub fn backward(
    sizes: Sizes,
    kept: Kept,
    (seen, seen_by): (Ranges, Ranges),
    (along, parts): (usize, usize),
    [to_q, to_k, to_v]: [usize; 3],
) -> Result<Vec<Call>> {
    let [q, k, v] = kept.inputs;
    let Sizes { queries, keys, .. } = sizes;
    let by_query = Launch {
        grid: [queries.div_ceil(WARPS), sizes.heads, 1],
        block: WARPS * WARP,
        shared: 0,
    };
    let first = Call::new(&ATTENTION, "attention_along", by_query)?
        .floats(kept.out)
        .floats(kept.grad)
        .buffer(along, DType::F32)
        .size(queries)
        .int(sizes.heads as i32)
        .int(sizes.quads() as i32);

    let rows = WARPS * GRADIENT_ROWS;
    let given = |name, launch, ranges: Ranges| -> Result<Call> {
        let call = Call::new(&ATTENTION, name, launch)?;
        let call = call.floats(q).floats(k).floats(v).floats(kept.grad);
        let call = ranges.of(call).buffer(kept.logsumexp, DType::F32);
        Ok(call.buffer(along, DType::F32))
    };
    let launch = sizes.launch(queries, sizes.heads, rows, 2);
    let to_queries = given("attention_to_queries", launch, seen)?.floats(to_q);
    let launch = sizes.launch(keys, sizes.heads, rows, 2);
    let to_keys = given("attention_to_keys", launch, seen_by)?.floats(parts);
    let quads = 2 * keys * sizes.key_heads * sizes.quads();
    let join = Call::new(
        &ATTENTION,
        "attention_join",
        Launch::over(quads, WARPS * WARP),
    )?;
    let join = join.floats(parts).floats(to_k).floats(to_v);
    let calls = [
        to_queries.size(queries),
        to_keys.size(queries).size(keys),
        join.size(keys),
    ];
    let calls = calls.map(|call| sizes.heads(call).float(sizes.scale));
    Ok([first].into_iter().chain(calls).collect())
}
