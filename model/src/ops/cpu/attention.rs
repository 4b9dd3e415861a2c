//! Provides causal attention of one head at a time on the CPU, forward and backward, without ever
//! holding a [T, T] matrix: probabilities exist for a block of queries only and are recomputed in
//! the backward pass, as in Dao et al., "FlashAttention" (2022).

use rayon::prelude::*;

use super::matmul::{Matrix, Store, Threads, product};
use crate::ops::{Dims, Heads, Span};
use crate::simd::{add_to, softmax, softmax_gradient};

/// Queries per block. Keys after a block's last query, and before its first one's window, are never touched.
const BLOCK_QUERIES: usize = 64;

impl Span {
    /// The blocks of queries, each with the keys that any of them sees.
    fn blocks(self, window: Option<usize>) -> impl Iterator<Item = Block> {
        let past = self.keys - self.queries;
        (0..self.queries).step_by(BLOCK_QUERIES).map(move |start| {
            let queries = BLOCK_QUERIES.min(self.queries - start);
            let first_key = first_visible(past + start, window);
            Block {
                start,
                queries,
                first_key,
                keys: past + start + queries - first_key,
            }
        })
    }
}

/// The first position that `position` sees.
fn first_visible(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Consecutive queries of a span, and the keys that reach from the first one's window to the last one.
#[derive(Debug, Clone, Copy)]
struct Block {
    /// First query, counted in the span.
    start: usize,
    queries: usize,
    /// First key, counted in the span.
    first_key: usize,
    keys: usize,
}

impl Dims {
    /// Rows `first..first + len` of one head in a tensor with `heads` heads.
    fn rows<'a>(
        &self,
        data: &'a [f32],
        (heads, head): (usize, usize),
        first: usize,
        len: usize,
    ) -> Matrix<'a> {
        let stride = heads * self.head_dim;
        let data = &data[first * stride + head * self.head_dim..];
        Matrix::new(data, len, self.head_dim, stride)
    }
}

/// One head of one sequence: where its rows lie in q, k and v.
struct Head<'a> {
    dims: Dims,
    span: Span,
    head: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

impl<'a> Head<'a> {
    fn of_query(&self, data: &'a [f32], block: Block) -> Matrix<'a> {
        let first = self.span.first_query + block.start;
        self.dims
            .rows(data, (self.dims.heads, self.head), first, block.queries)
    }

    fn of_key(&self, data: &'a [f32], block: Block) -> Matrix<'a> {
        let Dims {
            heads,
            key_value_heads,
            ..
        } = self.dims;
        let head = self.head / (heads / key_value_heads);
        let first = self.span.first_key + block.first_key;
        self.dims
            .rows(data, (key_value_heads, head), first, block.keys)
    }

    /// softmax(scale q k^T) of the block's queries over what they see, zero elsewhere: [queries, keys] into `out`.
    fn probabilities(&self, block: Block, out: &mut [f32]) {
        let (q, k) = (self.of_query(self.q, block), self.of_key(self.k, block));
        product(
            out,
            block.keys,
            Store::Replace,
            self.dims.scale(),
            Threads::One,
            q,
            k.transpose(),
        );
        for (i, row) in out.chunks_exact_mut(block.keys).enumerate() {
            let end = block.keys - block.queries + i + 1;
            let last = block.first_key + end - 1;
            let start = first_visible(last, self.dims.window) - block.first_key;
            row[..start].fill(0.0);
            softmax(&mut row[start..end]);
            row[end..].fill(0.0);
        }
    }

    /// The head's output for one block of queries, into its columns of [queries, heads * head_dim].
    fn forward(&self, block: Block, scratch: &mut [f32], out: &mut [f32]) {
        let stride = self.dims.heads * self.dims.head_dim;
        let probabilities = &mut scratch[..block.queries * block.keys];
        self.probabilities(block, probabilities);
        let p = Matrix::new(probabilities, block.queries, block.keys, block.keys);
        let out = &mut out[self.head * self.dims.head_dim..];
        let v = self.of_key(self.v, block);
        product(out, stride, Store::Replace, 1.0, Threads::One, p, v);
    }

    /// With P the probabilities and dO the output's gradient: dV = P^T dO, dP = dO V^T,
    /// dS = P (dP - rowsum(P dP)), dQ = scale dS K, dK = scale dS^T Q.
    fn backward(&self, grad: &'a [f32]) -> Heads<Vec<f32>> {
        let Dims { head_dim, .. } = self.dims;
        let scale = self.dims.scale();
        let mut out = Heads {
            q: vec![0.0; self.span.queries * head_dim],
            k: vec![0.0; self.span.keys * head_dim],
            v: vec![0.0; self.span.keys * head_dim],
        };
        let scratch_len = BLOCK_QUERIES.min(self.span.queries) * self.span.keys;
        let (mut p, mut ds) = (vec![0f32; scratch_len], vec![0f32; scratch_len]);
        for block in self.span.blocks(self.dims.window) {
            let Block { start, keys, .. } = block;
            let len = block.queries;
            let (p, ds) = (&mut p[..len * keys], &mut ds[..len * keys]);
            self.probabilities(block, p);
            let grad = self.of_query(grad, block);
            let v = self.of_key(self.v, block);
            product(
                ds,
                keys,
                Store::Replace,
                1.0,
                Threads::One,
                grad,
                v.transpose(),
            );
            for (p, ds) in p.chunks_exact(keys).zip(ds.chunks_exact_mut(keys)) {
                softmax_gradient(p, ds);
            }
            let p = Matrix::new(p, len, keys, keys).transpose();
            let seen = block.first_key * head_dim..;
            let to_v = &mut out.v[seen.clone()];
            product(to_v, head_dim, Store::Add, 1.0, Threads::One, p, grad);
            let ds = Matrix::new(ds, len, keys, keys);
            let (q, k) = (self.of_query(self.q, block), self.of_key(self.k, block));
            let to_q = &mut out.q[start * head_dim..(start + len) * head_dim];
            product(to_q, head_dim, Store::Replace, scale, Threads::One, ds, k);
            product(
                &mut out.k[seen],
                head_dim,
                Store::Add,
                scale,
                Threads::One,
                ds.transpose(),
                q,
            );
        }
        out
    }
}

/// Attention of every head: softmax(q k^T / sqrt(head_dim)) v over each position's past within its span and window, into
/// `out`.
///
/// # Shapes
/// q and out [rows, H, head_dim], k and v [key rows, KV, head_dim]; the spans are in order and cover all rows.
pub(super) fn forward(
    dims: Dims,
    spans: &[Span],
    (q, k, v): (&[f32], &[f32], &[f32]),
    out: &mut [f32],
) {
    let stride = dims.heads * dims.head_dim;
    let mut rest = out;
    let mut tasks = Vec::new();
    for span in spans {
        for block in span.blocks(dims.window) {
            let (out, later) = std::mem::take(&mut rest).split_at_mut(block.queries * stride);
            rest = later;
            tasks.push((*span, block, out));
        }
    }
    tasks.into_par_iter().for_each(|(span, block, out)| {
        let mut scratch = vec![0f32; block.queries * block.keys];
        for head in 0..dims.heads {
            let head = Head {
                dims,
                span,
                head,
                q,
                k,
                v,
            };
            head.forward(block, &mut scratch, out);
        }
    });
}

/// Gradients in q, k and v from the output's gradient, shaped as they are.
pub(super) fn backward(
    dims: Dims,
    spans: &[Span],
    (q, k, v): (&[f32], &[f32], &[f32]),
    grad: &[f32],
) -> Heads<Vec<f32>> {
    let heads: Vec<Head<'_>> = spans
        .iter()
        .flat_map(|span| {
            (0..dims.heads).map(|head| Head {
                dims,
                span: *span,
                head,
                q,
                k,
                v,
            })
        })
        .collect();
    let by_head: Vec<Heads<Vec<f32>>> = heads.par_iter().map(|head| head.backward(grad)).collect();
    let mut out = Heads {
        q: vec![0.0; q.len()],
        k: vec![0.0; k.len()],
        v: vec![0.0; v.len()],
    };
    for (Head { span, head, .. }, gradients) in heads.iter().zip(&by_head) {
        let shared = head / (dims.heads / dims.key_value_heads);
        let (query, key) = (span.first_query, span.first_key);
        let to = (dims.heads, *head, dims.head_dim);
        let to_key = (dims.key_value_heads, shared, dims.head_dim);
        scatter_head(to, query, &gradients.q, &mut out.q);
        scatter_head(to_key, key, &gradients.k, &mut out.k);
        scatter_head(to_key, key, &gradients.v, &mut out.v);
    }
    out
}

/// Adds a head's [positions, head_dim] to its columns of [rows, heads, head_dim], from row `first` on. Query heads that share
/// a key head add up in their order.
fn scatter_head(
    (heads, head, head_dim): (usize, usize, usize),
    first: usize,
    rows: &[f32],
    out: &mut [f32],
) {
    let stride = heads * head_dim;
    let out = &mut out[first * stride + head * head_dim..];
    for (out, row) in out.chunks_mut(stride).zip(rows.chunks_exact(head_dim)) {
        add_to(&mut out[..head_dim], row);
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
pub(crate) mod tests;
