//! Provides causal attention of one head at a time on the CPU, forward and backward, without ever
//! holding a [T, T] matrix: probabilities exist for a block of queries only and are recomputed in
//! the backward pass, as in Dao et al., "FlashAttention" (2022).

use rayon::prelude::*;

use crate::matmul::{Matrix, Store, Threads, product};

/// Queries per block. Keys after a block's last query are never touched, which halves the work.
const BLOCK_QUERIES: usize = 64;

/// Sizes of one attention: all tensors are [batch, positions, heads, head_dim].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dims {
    pub(crate) batch: usize,
    /// Query positions: the last `queries` of the `keys` positions.
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    pub(crate) key_value_heads: usize,
    pub(crate) head_dim: usize,
}

/// Gradients of the loss in q, k and v.
pub(crate) struct InputGradients {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Dims {
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn query_len(&self) -> usize {
        self.queries * self.head_dim
    }

    fn key_len(&self) -> usize {
        self.keys * self.head_dim
    }

    /// The blocks of queries, each with the number of keys that its last query sees.
    fn blocks(self) -> impl Iterator<Item = (usize, usize, usize)> {
        let past = self.keys - self.queries;
        (0..self.queries).step_by(BLOCK_QUERIES).map(move |start| {
            let len = BLOCK_QUERIES.min(self.queries - start);
            (start, len, past + start + len)
        })
    }

    /// Positions `start..start + len` of one head in a tensor with `heads` heads.
    fn rows<'a>(
        &self,
        data: &'a [f32],
        (heads, head): (usize, usize),
        first_position: usize,
        len: usize,
    ) -> Matrix<'a> {
        let stride = heads * self.head_dim;
        let data = &data[first_position * stride + head * self.head_dim..];
        Matrix::new(data, len, self.head_dim, stride)
    }
}

/// One head of one sequence: where its rows lie in q, k and v.
struct Head<'a> {
    dims: Dims,
    batch: usize,
    head: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

impl<'a> Head<'a> {
    fn of_query(&self, data: &'a [f32], start: usize, len: usize) -> Matrix<'a> {
        let first = self.batch * self.dims.queries + start;
        self.dims
            .rows(data, (self.dims.heads, self.head), first, len)
    }

    fn of_key(&self, data: &'a [f32], len: usize) -> Matrix<'a> {
        let Dims {
            heads,
            key_value_heads,
            keys,
            ..
        } = self.dims;
        let head = self.head / (heads / key_value_heads);
        self.dims
            .rows(data, (key_value_heads, head), self.batch * keys, len)
    }

    /// softmax(scale q k^T) of the block's queries over their own past, zero beyond it:
    /// [len, seen] into `out`.
    fn probabilities(&self, start: usize, len: usize, seen: usize, out: &mut [f32]) {
        let (q, k) = (self.of_query(self.q, start, len), self.of_key(self.k, seen));
        product(
            out,
            seen,
            Store::Replace,
            self.dims.scale(),
            Threads::One,
            q,
            k.transpose(),
        );
        for (i, row) in out.chunks_exact_mut(seen).enumerate() {
            let (visible, hidden) = row.split_at_mut(seen - len + i + 1);
            softmax(visible);
            hidden.fill(0.0);
        }
    }

    /// The head's output [queries, head_dim].
    fn forward(&self, out: &mut [f32]) {
        let head_dim = self.dims.head_dim;
        let mut scratch = vec![0f32; BLOCK_QUERIES.min(self.dims.queries) * self.dims.keys];
        for (start, len, seen) in self.dims.blocks() {
            let probabilities = &mut scratch[..len * seen];
            self.probabilities(start, len, seen, probabilities);
            let p = Matrix::new(probabilities, len, seen, seen);
            let out = &mut out[start * head_dim..(start + len) * head_dim];
            product(
                out,
                head_dim,
                Store::Replace,
                1.0,
                Threads::One,
                p,
                self.of_key(self.v, seen),
            );
        }
    }

    /// With P the probabilities and dO the output's gradient: dV = P^T dO, dP = dO V^T,
    /// dS = P (dP - rowsum(P dP)), dQ = scale dS K, dK = scale dS^T Q.
    fn backward(&self, grad: &'a [f32]) -> InputGradients {
        let Dims { head_dim, .. } = self.dims;
        let scale = self.dims.scale();
        let mut out = InputGradients {
            q: vec![0.0; self.dims.query_len()],
            k: vec![0.0; self.dims.key_len()],
            v: vec![0.0; self.dims.key_len()],
        };
        let scratch_len = BLOCK_QUERIES.min(self.dims.queries) * self.dims.keys;
        let (mut p, mut ds) = (vec![0f32; scratch_len], vec![0f32; scratch_len]);
        for (start, len, seen) in self.dims.blocks() {
            let (p, ds) = (&mut p[..len * seen], &mut ds[..len * seen]);
            self.probabilities(start, len, seen, p);
            let grad = self.of_query(grad, start, len);
            let v = self.of_key(self.v, seen);
            product(
                ds,
                seen,
                Store::Replace,
                1.0,
                Threads::One,
                grad,
                v.transpose(),
            );
            for (p, ds) in p.chunks_exact(seen).zip(ds.chunks_exact_mut(seen)) {
                softmax_gradient(p, ds);
            }
            let p = Matrix::new(p, len, seen, seen).transpose();
            product(&mut out.v, head_dim, Store::Add, 1.0, Threads::One, p, grad);
            let ds = Matrix::new(ds, len, seen, seen);
            let (q, k) = (self.of_query(self.q, start, len), self.of_key(self.k, seen));
            let to_q = &mut out.q[start * head_dim..(start + len) * head_dim];
            product(to_q, head_dim, Store::Replace, scale, Threads::One, ds, k);
            product(
                &mut out.k,
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

/// In place; the row is never empty, since a position sees itself.
fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum += *x;
    }
    let scale = 1.0 / sum;
    for x in row {
        *x *= scale;
    }
}

/// Turns dP into dS in place.
fn softmax_gradient(p: &[f32], grad: &mut [f32]) {
    let mean = crate::element::lane_sum(p.len(), |j| p[j] * grad[j]);
    for (grad, p) in grad.iter_mut().zip(p) {
        *grad = p * (*grad - mean);
    }
}

/// Attention of every head: softmax(q k^T / sqrt(head_dim)) v over each position's past.
///
/// # Shapes
/// q [B, queries, H, head_dim], k and v [B, keys, KV, head_dim] -> [B, queries, H, head_dim]
pub(crate) fn forward(dims: Dims, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let mut by_head = vec![0f32; q.len()];
    by_head
        .par_chunks_mut(dims.query_len())
        .enumerate()
        .for_each(|(index, out)| head(dims, index, q, k, v).forward(out));
    let mut out = vec![0f32; q.len()];
    scatter_heads(
        dims,
        dims.queries,
        dims.heads,
        by_head.chunks(dims.query_len()),
        &mut out,
    );
    out
}

/// Gradients in q, k and v from the output's gradient, shaped as they are.
pub(crate) fn backward(
    dims: Dims,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    grad: &[f32],
) -> InputGradients {
    let by_head: Vec<InputGradients> = (0..dims.batch * dims.heads)
        .into_par_iter()
        .map(|index| head(dims, index, q, k, v).backward(grad))
        .collect();
    let mut out = InputGradients {
        q: vec![0.0; q.len()],
        k: vec![0.0; k.len()],
        v: vec![0.0; v.len()],
    };
    let Dims {
        queries,
        keys,
        heads,
        key_value_heads,
        ..
    } = dims;
    let part = |of: fn(&InputGradients) -> &[f32]| by_head.iter().map(of);
    scatter_heads(dims, queries, heads, part(|g| &g.q), &mut out.q);
    scatter_heads(dims, keys, key_value_heads, part(|g| &g.k), &mut out.k);
    scatter_heads(dims, keys, key_value_heads, part(|g| &g.v), &mut out.v);
    out
}

fn head<'a>(dims: Dims, index: usize, q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Head<'a> {
    Head {
        dims,
        batch: index / dims.heads,
        head: index % dims.heads,
        q,
        k,
        v,
    }
}

/// Adds each query head's [positions, head_dim] to the place of its head, or of the key head that it
/// shares, in [B, positions, out_heads, head_dim]. The order of the sum is that of the heads.
fn scatter_heads<'a>(
    dims: Dims,
    positions: usize,
    out_heads: usize,
    by_head: impl Iterator<Item = &'a [f32]>,
    out: &mut [f32],
) {
    let Dims {
        heads, head_dim, ..
    } = dims;
    for (index, rows) in by_head.enumerate() {
        let (batch, head) = (index / heads, index % heads / (heads / out_heads));
        let stride = out_heads * head_dim;
        let first = batch * positions * stride + head * head_dim;
        for (t, row) in rows.chunks_exact(head_dim).enumerate() {
            let at = first + t * stride;
            for (out, x) in out[at..at + head_dim].iter_mut().zip(row) {
                *out += x;
            }
        }
    }
}
