//! Provides the one operation that the solver, Newton's equations and the adjoint are all made of: a pass over the
//! kernel that takes row sums, turns each into a weight, and adds up the weighted rows, reading every row once.

use rayon::prelude::*;

use crate::loss::simd::{Real, add_row, add_rows4, dot4, gibbs_row, vectorized};

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

    /// `K_ij = exp((base_i - cost_ij) / epsilon + row_i + column_j)`, potentials in units of epsilon.
    pub(crate) fn fill(
        &mut self,
        cost: &[f32],
        base: &[f32],
        row: &[f64],
        column: &[f64],
        epsilon: f64,
    ) {
        let m = self.m;
        let column: Vec<R> = column.iter().map(|&g| R::from_f64(g)).collect();
        let inverse = R::from_f64(1.0 / epsilon);
        let body = |(part, out): (usize, &mut [R])| {
            let rows = part * PART_ROWS..part * PART_ROWS + out.len() / m;
            let cost = &cost[rows.start * m..rows.end * m];
            let (base, row) = (&base[rows.clone()], &row[rows]);
            fill_part(out, cost, base, row, &column, inverse);
        };
        if self.data.len() >= PARALLEL_ENTRIES {
            let parts = self.data.par_chunks_mut(PART_ROWS * m).enumerate();
            parts.for_each(body);
        } else {
            let parts = self.data.chunks_mut(PART_ROWS * m).enumerate();
            parts.for_each(body);
        }
    }

    /// `w_i = row(i, sum_j K_ij x_j)` into `self.weights` and `out_j = sum_i w_i K_ij`.
    pub(crate) fn pass(&mut self, x: &[R], out: &mut [f64], row: impl Fn(usize, R) -> R + Sync) {
        let m = self.m;
        let data = &self.data;
        let body = |(part, (weights, out)): (usize, (&mut [R], &mut [R]))| {
            let first = part * PART_ROWS;
            let data = &data[first * m..(first + weights.len()) * m];
            pulp::Arch::new().dispatch(PartPass {
                data,
                x,
                weights,
                out,
                row: |offset, sum| row(first + offset, sum),
            });
        };
        if data.len() >= PARALLEL_ENTRIES {
            let weights = self.weights.par_chunks_mut(PART_ROWS);
            weights
                .zip(self.partial.par_chunks_mut(m))
                .enumerate()
                .for_each(body);
        } else {
            let weights = self.weights.chunks_mut(PART_ROWS);
            weights
                .zip(self.partial.chunks_mut(m))
                .enumerate()
                .for_each(body);
        }
        out.fill(0.0);
        for partial in self.partial.chunks(m) {
            for (out, &partial) in out.iter_mut().zip(partial) {
                *out += partial.to_f64();
            }
        }
    }
}

vectorized! {
    /// The kernel of one part's rows.
    fn fill_part<'a, R>(
        out: &'a mut [R],
        cost: &'a [f32],
        base: &'a [f32],
        row: &'a [f64],
        column: &'a [R],
        inverse_epsilon: R,
    ) -> () {
        let m = column.len();
        let rows = out.chunks_mut(m).zip(cost.chunks(m));
        for ((out, cost), (&base, &row)) in rows.zip(base.iter().zip(row)) {
            gibbs_row(out, cost, (base, R::from_f64(row)), column, inverse_epsilon);
        }
    }
}

/// One part of a pass.
struct PartPass<'a, R, F> {
    data: &'a [R],
    x: &'a [R],
    weights: &'a mut [R],
    out: &'a mut [R],
    row: F,
}

impl<R: Real, F: Fn(usize, R) -> R> pulp::WithSimd for PartPass<'_, R, F> {
    type Output = ();

    /// Four rows at a time.
    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self {
            data,
            x,
            weights,
            out,
            row,
        } = self;
        let m = x.len();
        out.fill(R::default());
        let quads = weights.len() / 4;
        for quad in 0..quads {
            let base = quad * 4;
            let [a, b, c, d] = [0, 1, 2, 3].map(|r| (base + r) * m);
            let rows = [
                &data[a..a + m],
                &data[b..b + m],
                &data[c..c + m],
                &data[d..d + m],
            ];
            let sums = dot4(simd, rows, x);
            let made = [
                row(base, sums[0]),
                row(base + 1, sums[1]),
                row(base + 2, sums[2]),
                row(base + 3, sums[3]),
            ];
            add_rows4(out, rows, made);
            weights[base..base + 4].copy_from_slice(&made);
        }
        for i in quads * 4..weights.len() {
            let one = &data[i * m..(i + 1) * m];
            weights[i] = row(i, dot4(simd, [one; 4], x)[0]);
            add_row(out, one, weights[i]);
        }
    }
}
