//! Provides the calls of causal attention with grouped query heads: `out = softmax(scale q k^T) v` over the keys that each query sees,
//! and its gradients, without a matrix of scores in memory. Tensor cores multiply where inputs are of 16 bits.

use candle_core::{DType, Result};

use crate::{ATTENTION, Call, Launch};

/// Elements of a head at most.
pub const HEAD_DIM_MAX: usize = 128;

const WARPS: usize = 4;
const WARP: usize = 32;
/// Rows of a block on tensor cores; see attention_mma.cu.
const MMA_ROWS: usize = 32;
/// What heads on tensor cores are whole multiples of.
const MMA_MULTIPLE: usize = 16;

/// A kernel in attention.cu, and what does the same on tensor cores, in attention_mma.cu.
struct Kernel {
    plain: &'static str,
    /// Rows of a block there, and how many tiles of them lie in shared memory beside one of columns.
    rows: usize,
    tiles: usize,
    /// For heads of at most 64 and of at most 128 elements.
    mma: [&'static str; 2],
    /// Rows in shared memory there: tiles of a block's own, and two of a step's columns.
    mma_rows: usize,
}

const FORWARD: Kernel = Kernel {
    plain: "attention",
    rows: 8 * WARPS,
    tiles: 1,
    mma: ["attention_mma_64", "attention_mma_128"],
    mma_rows: MMA_ROWS + 2 * 64,
};
const TO_QUERIES: Kernel = Kernel {
    plain: "attention_to_queries",
    rows: 6 * WARPS,
    tiles: 2,
    mma: [
        "attention_to_queries_mma_64",
        "attention_to_queries_mma_128",
    ],
    mma_rows: 2 * MMA_ROWS + 2 * 32,
};
const TO_KEYS: Kernel = Kernel {
    plain: "attention_to_keys",
    mma: ["attention_to_keys_mma_64", "attention_to_keys_mma_128"],
    ..TO_QUERIES
};

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

    /// A block for each so many rows of every head.
    fn launch(&self, kernel: &Kernel, count: usize) -> Launch {
        let Kernel { rows, tiles, .. } = *kernel;
        let quads = tiles * rows * self.quads() + WARP * self.column_quads();
        Launch {
            grid: [count.div_ceil(rows), self.heads, 1],
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

    /// A call of this kernel for `count` rows of every head, with what `given` adds before the sizes of heads: on tensor cores where
    /// `floats` hold 16 bits each and heads are whole sixteens.
    fn call(
        &self,
        kernel: &Kernel,
        count: usize,
        floats: &[usize],
        given: impl Fn(Call) -> Call,
    ) -> Result<Call> {
        let make = |name, launch| -> Result<Call> {
            let call = given(Call::new(&ATTENTION, name, launch)?);
            Ok(self.heads(call).float(self.scale))
        };
        let plain = make(kernel.plain, self.launch(kernel, count))?;
        if !self.head_dim.is_multiple_of(MMA_MULTIPLE) {
            return Ok(plain);
        }
        let [small, large] = kernel.mma;
        let (name, dim) = match self.head_dim {
            ..=64 => (small, 64),
            _ => (large, 128),
        };
        let launch = Launch {
            grid: [count.div_ceil(MMA_ROWS), self.heads, 1],
            block: WARPS * WARP,
            // Rows are eight elements apart; see `Rows` there.
            shared: kernel.mma_rows * (dim + 8) * size_of::<u16>(),
        };
        Ok(plain.or_where_narrow(floats, make(name, launch)?))
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
    sizes.call(&FORWARD, sizes.queries, &[q, k, v, out], |call| {
        let call = call.floats(q).floats(k).floats(v);
        let call = seen.of(call).floats(out);
        call.buffer(logsumexp, DType::F32).size(sizes.queries)
    })
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

    let given = |call: Call, ranges: Ranges| {
        let call = call.floats(q).floats(k).floats(v).floats(kept.grad);
        let call = ranges.of(call).buffer(kept.logsumexp, DType::F32);
        call.buffer(along, DType::F32)
    };
    let floats = [q, k, v, kept.grad, to_q];
    let to_queries = sizes.call(&TO_QUERIES, queries, &floats, |call| {
        given(call, seen).floats(to_q).size(queries)
    })?;
    let to_keys = sizes.call(&TO_KEYS, keys, &floats[..4], |call| {
        given(call, seen_by).floats(parts).size(queries).size(keys)
    })?;
    let quads = 2 * keys * sizes.key_heads * sizes.quads();
    let launch = Launch::over(quads, WARPS * WARP);
    let join = Call::new(&ATTENTION, "attention_join", launch)?;
    let join = join.floats(parts).floats(to_k).floats(to_v).size(keys);
    let join = sizes.heads(join).float(sizes.scale);
    Ok(vec![first, to_queries, to_keys, join])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The calls of a layer's attention, with a head of this many elements, on inputs of this type.
    fn chosen(tokens: usize, head_dim: usize, dtype: DType) -> Vec<Call> {
        let sizes = Sizes {
            queries: tokens,
            keys: tokens,
            heads: 12,
            key_heads: 2,
            head_dim,
            scale: 1.0,
        };
        let ranges = Ranges { first: 6, end: 7 };
        let kept = Kept {
            inputs: [0, 1, 2],
            out: 3,
            logsumexp: 4,
            grad: 5,
        };
        let forward = forward(sizes, [0, 1, 2], ranges, (3, 4)).unwrap();
        let to = [10, 11, 12];
        let backward = backward(sizes, kept, (ranges, ranges), (8, 9), to).unwrap();
        let calls = [forward].into_iter().chain(backward);
        calls
            .map(|call| call.choose(|_| Some(dtype)).clone())
            .collect()
    }

    #[test]
    fn tensor_cores_multiply_sixteen_bits_and_whole_sixteens() {
        let names = |head_dim, dtype| -> Vec<&str> {
            let calls = chosen(1, head_dim, dtype);
            calls.iter().map(|call| call.function).collect()
        };
        for (head_dim, dtype, version) in [
            (128, DType::BF16, "_mma_128"),
            (80, DType::F16, "_mma_128"),
            (64, DType::F16, "_mma_64"),
            (16, DType::BF16, "_mma_64"),
            (8, DType::BF16, ""),
            (100, DType::F16, ""),
            (128, DType::F32, ""),
        ] {
            let both = [
                "attention",
                "attention_along",
                "attention_to_queries",
                "attention_to_keys",
                "attention_join",
            ];
            let expected = both.map(|name| match name {
                "attention_along" | "attention_join" => name.to_owned(),
                name => format!("{name}{version}"),
            });
            assert_eq!(names(head_dim, dtype), expected, "{head_dim} {dtype:?}");
        }
    }

    #[test]
    fn two_blocks_of_the_largest_head_share_a_multiprocessor() {
        for dtype in [DType::F32, DType::BF16] {
            for call in chosen(512, 128, dtype) {
                // Of compute capability 8.6 and 8.9: 100 KiB, and 1 KiB of it for every block.
                let shared = call.shared_bytes() + 1024;
                assert!(2 * shared <= 100 << 10, "{}", call.function);
                // At 512 tokens each of the reference card's 128 multiprocessors has one.
                assert!(call.blocks() >= 128, "{}", call.function);
            }
        }
    }
}
