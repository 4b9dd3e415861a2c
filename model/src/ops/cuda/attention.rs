//! Provides causal attention on a card, forward and backward: one logsumexp a head and query is kept, and no matrix of scores.

use candle_core::{DType, Device, Result, Tensor};
use distill_kernels::Call;
use distill_kernels::attention::{self, Kept, Ranges, Sizes};

use crate::ops::{Dims, Span};

/// Rows `[first, end)` that each row sees. They are fewer than u32 counts: a tensor of more would not fit a card.
#[derive(Default)]
struct Rows([Vec<u32>; 2]);

impl Rows {
    fn push(&mut self, first: usize, end: usize) {
        self.0[0].push(first as u32);
        self.0[1].push(end as u32);
    }
}

/// The keys that each query sees, and the queries that see each key.
fn visible(spans: &[Span], window: Option<usize>) -> (Rows, Rows) {
    let (mut keys, mut queries) = (Rows::default(), Rows::default());
    for span in spans {
        let past = span.keys - span.queries;
        let window = window.unwrap_or(span.keys);
        for query in 0..span.queries {
            let end = past + query + 1;
            let first = end.saturating_sub(window);
            keys.push(span.first_key + first, span.first_key + end);
        }
        for key in 0..span.keys {
            let first = key.saturating_sub(past);
            // No query sees a key before every window.
            let end = (key + window).saturating_sub(past).min(span.queries);
            let (first, end) = (span.first_query + first, span.first_query + end);
            queries.push(first, end.max(first));
        }
    }
    (keys, queries)
}

/// What the kernels need beside their tensors.
#[derive(Debug)]
pub(crate) struct Plan {
    sizes: Sizes,
    /// u32: first and end of the keys that queries see, and of the queries that see keys.
    ranges: [Tensor; 4],
}

impl Plan {
    pub(crate) fn new(dims: Dims, spans: &[Span], device: &Device) -> Result<Self> {
        let (Rows([a, b]), Rows([c, d])) = visible(spans, dims.window);
        let sizes = Sizes {
            queries: a.len(),
            keys: c.len(),
            heads: dims.heads,
            key_heads: dims.key_value_heads,
            head_dim: dims.head_dim,
            scale: dims.scale(),
        };
        let tensor = |rows: Vec<u32>| Tensor::from_slice(&rows, rows.len(), device);
        let ranges = [tensor(a)?, tensor(b)?, tensor(c)?, tensor(d)?];
        Ok(Self { sizes, ranges })
    }

    /// Inputs of [`forward`](Self::forward) after q, k and v, and of [`backward`](Self::backward) after those, the output, logsumexp and
    /// the gradient.
    pub(crate) fn ranges(&self) -> [&Tensor; 4] {
        self.ranges.each_ref()
    }

    /// The output and logsumexp [H, queries].
    pub(crate) fn forward_outputs(&self, dtype: DType) -> [(DType, usize); 2] {
        let rows = self.sizes.queries * self.sizes.heads;
        [(dtype, rows * self.sizes.head_dim), (DType::F32, rows)]
    }

    pub(crate) fn forward(&self, x: &[usize], out: &[usize]) -> Result<Vec<Call>> {
        let (seen, _) = ranges(&x[3..]);
        let call = attention::forward(self.sizes, [x[0], x[1], x[2]], seen, (out[0], out[1]))?;
        Ok(vec![call])
    }

    /// Gradients in q, k and v, and scratch.
    pub(crate) fn backward_outputs(&self, dtype: DType) -> [(DType, usize); 5] {
        let Sizes {
            queries,
            keys,
            heads,
            key_heads,
            head_dim,
            ..
        } = self.sizes;
        let to_key = (dtype, keys * key_heads * head_dim);
        let to_query = (dtype, queries * heads * head_dim);
        let [along, parts] = self.sizes.scratch();
        [to_query, to_key, to_key, along, parts]
    }

    pub(crate) fn backward(&self, x: &[usize], out: &[usize]) -> Result<Vec<Call>> {
        let kept = Kept {
            inputs: [x[0], x[1], x[2]],
            out: x[3],
            logsumexp: x[4],
            grad: x[5],
        };
        let to = [out[0], out[1], out[2]];
        attention::backward(self.sizes, kept, ranges(&x[6..]), (out[3], out[4]), to)
    }
}

fn ranges(x: &[usize]) -> (Ranges, Ranges) {
    let ranges = |first, end| Ranges { first, end };
    (ranges(x[0], x[1]), ranges(x[2], x[3]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::attention::tests::causal_attention;
    use crate::ops::cuda::tests::assert_near;
    use crate::test_support::{gradients, largest_difference, random, values};
    use distill_kernels::{ATTENTION, Emulator};
    use std::sync::Arc;

    /// The largest relative error of rounding to a type once; for f32 some roundings of sums of some hundred terms.
    fn unit(dtype: DType) -> f32 {
        match dtype {
            DType::BF16 => 1.0 / 256.0,
            DType::F16 => 1.0 / 2048.0,
            _ => 1e-6,
        }
    }

    fn largest(x: &Tensor) -> f32 {
        values(x).iter().fold(0f32, |max, x| max.max(x.abs()))
    }

    /// Checks output and gradients against the CPU's in f32 on the same numbers.
    ///
    /// An output of 16 bits is rounded twice: each probability where it is multiplied with v, which moves a mean of v by one unit of
    /// the largest v at most, and the output. So are gradients: P or dS, and the gradient itself, and the output that dS is computed
    /// from was rounded twice.
    fn check(
        (batch, queries, keys): (usize, usize, usize),
        (heads, key_value_heads, head_dim): (usize, usize, usize),
        window: Option<usize>,
        documents: Option<&[usize]>,
        dtype: DType,
    ) {
        let emulator = Emulator::of(&ATTENTION).unwrap();
        let unit = unit(dtype);
        let dims = Dims {
            heads,
            key_value_heads,
            head_dim,
            window,
        };
        let spans = match documents {
            Some(lengths) => Span::documents(lengths),
            None => Span::batch(batch, queries, keys),
        };
        let plan = Plan::new(dims, &spans, &Device::Cpu).unwrap();
        let random = |rows, heads, seed| {
            let x = random(&[batch, rows, heads, head_dim], seed);
            (x * 2.0).unwrap().to_dtype(dtype).unwrap()
        };
        let q = random(queries, heads, 1);
        let (k, v) = (
            random(keys, key_value_heads, 2),
            random(keys, key_value_heads, 3),
        );
        let grad = random(queries, heads, 4);
        let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();

        let mut inputs = vec![&q, &k, &v];
        inputs.extend(plan.ranges());
        let outputs = plan.forward_outputs(dtype);
        let forward = |x: &[usize], out: &[usize]| plan.forward(x, out);
        let made = emulator.compute(&inputs, &outputs, forward).unwrap();
        let documents: Option<Arc<[usize]>> = documents.map(Into::into);
        let cpu = |x: &[Tensor]| causal_attention(&x[0], &x[1], &x[2], window, documents.as_ref());
        let inputs = [&q, &k, &v].map(wide);
        assert_near(&wide(&made[0]), &cpu(&inputs).unwrap(), 2.0 * unit);

        let mut kept = vec![&q, &k, &v, &made[0], &made[1], &grad];
        kept.extend(plan.ranges());
        let outputs = plan.backward_outputs(dtype);
        let backward = |x: &[usize], out: &[usize]| plan.backward(x, out);
        let made = emulator.compute(&kept, &outputs, backward).unwrap();
        for (kernel, cpu) in made.iter().zip(gradients(cpu, &inputs, &wide(&grad))) {
            let difference = largest_difference(&wide(kernel), &cpu);
            // Where a softmax has one term, its gradient is zero: a difference of two sums in f32.
            let allowed = 2.0 * unit * largest(&cpu) + 1e-6;
            assert!(difference <= allowed, "differs by {difference}");
        }
    }

    #[test]
    fn sequences_longer_than_tiles_and_ones_of_one_position() {
        // Past two tiles of 32 and three of 24, with a rest; one head, shared heads, all heads sharing one.
        check((2, 71, 71), (4, 2, 8), None, None, DType::F32);
        check((1, 33, 33), (3, 1, 64), None, None, DType::F32);
        check((3, 1, 1), (1, 1, 4), None, None, DType::F32);
    }

    #[test]
    fn the_largest_head_and_ones_of_every_layout() {
        check((1, 40, 40), (1, 1, 128), None, None, DType::F32);
        // Quads by eights, an even and an odd number of them.
        for head_dim in [32, 80, 20, 4] {
            check((1, 35, 35), (2, 1, head_dim), None, None, DType::F32);
        }
    }

    #[test]
    fn three_blocks_of_the_largest_head_share_a_multiprocessor() {
        let sizes = Sizes {
            queries: 512,
            keys: 512,
            heads: 12,
            key_heads: 2,
            head_dim: 128,
            scale: 1.0,
        };
        let ranges = Ranges { first: 3, end: 4 };
        let call = attention::forward(sizes, [0, 1, 2], ranges, (5, 6)).unwrap();
        // Of compute capability 8.6 and 8.9: 100 KiB, and 1 KiB of it for every block.
        assert!(3 * (call.shared_bytes() + 1024) <= 100 << 10);
        let kept = Kept {
            inputs: [0, 1, 2],
            out: 3,
            logsumexp: 4,
            grad: 5,
        };
        let calls = attention::backward(sizes, kept, (ranges, ranges), (6, 7), [8, 9, 10]);
        // The reference card has 128 multiprocessors.
        assert!(calls.unwrap().iter().all(|call| call.blocks() >= 2 * 128));
    }

    #[test]
    fn documents_see_themselves_only() {
        check((1, 70, 70), (2, 1, 8), None, Some(&[30, 1, 39]), DType::F32);
    }

    #[test]
    fn queries_that_follow_earlier_keys() {
        check((2, 5, 40), (2, 2, 8), None, None, DType::F32);
    }

    #[test]
    fn windows_that_hide_whole_tiles() {
        check((1, 90, 90), (2, 1, 8), Some(7), None, DType::F32);
        check((2, 5, 60), (1, 1, 8), Some(20), None, DType::F32);
        check((1, 70, 70), (1, 1, 8), Some(9), Some(&[30, 40]), DType::F32);
    }

    /// What runs on tensor cores: 16 bits, in whole sixteens.
    const NARROW: [DType; 2] = [DType::BF16, DType::F16];

    #[test]
    fn tensor_cores_take_sequences_longer_than_tiles_and_ones_of_one_position() {
        for dtype in NARROW {
            // Past two blocks of 32 rows and a step of 64 columns, with rests of odd lengths.
            check((2, 71, 71), (4, 2, 16), None, None, dtype);
            check((1, 133, 133), (3, 1, 64), None, None, dtype);
            check((3, 1, 1), (1, 1, 16), None, None, dtype);
        }
    }

    #[test]
    fn tensor_cores_take_heads_of_whole_sixteens() {
        for head_dim in [16, 48, 80, 96, 128] {
            check((1, 67, 67), (2, 1, head_dim), None, None, DType::BF16);
        }
        check((1, 67, 67), (2, 1, 112), None, None, DType::F16);
    }

    #[test]
    fn tensor_cores_see_what_ranges_say() {
        for dtype in NARROW {
            check((1, 70, 70), (2, 1, 32), None, Some(&[30, 1, 39]), dtype);
            check((2, 5, 90), (2, 2, 32), None, None, dtype);
            check((2, 40, 100), (2, 2, 32), None, None, dtype);
            check((1, 150, 150), (2, 1, 32), Some(7), None, dtype);
            check((2, 5, 60), (1, 1, 32), Some(20), None, dtype);
            check((1, 70, 70), (1, 1, 32), Some(9), Some(&[30, 40]), dtype);
        }
    }

    #[test]
    fn heads_that_tensor_cores_do_not_take_have_half_precision_too() {
        for dtype in NARROW {
            check((1, 50, 50), (2, 1, 8), None, None, dtype);
            check((1, 40, 40), (1, 1, 100), None, None, dtype);
        }
    }
}
