//! Provides the one operation that the solver, Newton's equations and the adjoint are all made of: a pass over the
//! kernel that takes row sums, turns each into a weight, and adds up the weighted rows, reading every row once.

use rayon::prelude::*;

use crate::loss::simd::{Real, add_row, add_rows4, dot, dot4, gibbs_row, vectorized};

/// Rows that add into one partial result. Fixed, so that results do not depend on the number of threads.
const PART_ROWS: usize = 128;
/// Entries below which starting other threads costs more than it saves.
const PARALLEL_ENTRIES: usize = 1 << 17;

/// A matrix K `[n, m]` with the scratch space of its passes.
pub(crate) struct Kernel<R> {
    pub(crate) n: usize,
    pub(crate) m: usize,
    /// Row-major.
    pub(crate) data: Vec<R>,
    /// What the last pass made of each row sum.
    pub(crate) weights: Vec<R>,
    partial: Vec<R>,
}

impl<R: Real> Kernel<R> {
    pub(crate) fn new(n: usize, m: usize, data: Vec<R>) -> Self {
        debug_assert_eq!(data.len(), n * m);
        Self {
            n,
            m,
            data,
            weights: vec![R::default(); n],
            partial: vec![R::default(); n.div_ceil(PART_ROWS) * m],
        }
    }

    /// `K_ij = exp(row_i + column_j - cost_ij / epsilon)`, potentials in units of epsilon.
    pub(crate) fn fill(&mut self, cost: &[f32], row: &[f64], column: &[f64], epsilon: f64) {
        let m = self.m;
        let column: Vec<R> = column.iter().map(|&g| R::from_f64(g)).collect();
        let inverse = R::from_f64(1.0 / epsilon);
        let body = |part: usize, out: &mut [R]| {
            vectorized(|| {
                for (offset, out) in out.chunks_mut(m).enumerate() {
                    let i = part * PART_ROWS + offset;
                    let cost = &cost[i * m..(i + 1) * m];
                    gibbs_row(out, cost, R::from_f64(row[i]), &column, inverse);
                }
            });
        };
        if self.data.len() >= PARALLEL_ENTRIES {
            self.data
                .par_chunks_mut(PART_ROWS * m)
                .enumerate()
                .for_each(|(part, out)| body(part, out));
        } else {
            self.data
                .chunks_mut(PART_ROWS * m)
                .enumerate()
                .for_each(|(part, out)| body(part, out));
        }
    }

    /// `w_i = row(i, sum_j K_ij x_j)` into `self.weights` and `out_j = sum_i w_i K_ij`.
    pub(crate) fn pass(&mut self, x: &[R], out: &mut [f64], row: impl Fn(usize, R) -> R + Sync) {
        let m = self.m;
        let data = &self.data;
        let body = |part: usize, weights: &mut [R], out: &mut [R]| {
            let first = part * PART_ROWS;
            let data = &data[first * m..(first + weights.len()) * m];
            vectorized(|| {
                part_pass(data, x, weights, out, |offset, sum| {
                    row(first + offset, sum)
                })
            });
        };
        if data.len() >= PARALLEL_ENTRIES {
            self.weights
                .par_chunks_mut(PART_ROWS)
                .zip(self.partial.par_chunks_mut(m))
                .enumerate()
                .for_each(|(part, (weights, out))| body(part, weights, out));
        } else {
            self.weights
                .chunks_mut(PART_ROWS)
                .zip(self.partial.chunks_mut(m))
                .enumerate()
                .for_each(|(part, (weights, out))| body(part, weights, out));
        }
        out.fill(0.0);
        for partial in self.partial.chunks(m) {
            for (out, &partial) in out.iter_mut().zip(partial) {
                *out += partial.to_f64();
            }
        }
    }
}

/// One part of a pass, four rows at a time.
#[inline(always)]
fn part_pass<R: Real>(
    data: &[R],
    x: &[R],
    weights: &mut [R],
    out: &mut [R],
    row: impl Fn(usize, R) -> R,
) {
    let m = x.len();
    out.fill(R::default());
    let quads = weights.len() / 4;
    for quad in 0..quads {
        let base = quad * 4;
        let rows = [0, 1, 2, 3].map(|r| &data[(base + r) * m..(base + r + 1) * m]);
        let sums = dot4(rows, x);
        let made = [0, 1, 2, 3].map(|r| row(base + r, sums[r]));
        add_rows4(out, rows, made);
        weights[base..base + 4].copy_from_slice(&made);
    }
    for i in quads * 4..weights.len() {
        let one = &data[i * m..(i + 1) * m];
        weights[i] = row(i, dot(one, x));
        add_row(out, one, weights[i]);
    }
}
