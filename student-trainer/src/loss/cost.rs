//! Provides the cost matrices: softmax of similarities and its way back, the `kl` cost, and the position prior.

use rayon::prelude::*;

use super::simd::{exp_in_place, max, scale_in_place};

/// Replaces every row of S by `softmax(row / temperature)`.
///
/// # Shapes
/// `s`: `[n, m]`.
pub(crate) fn softmax_rows(s: &mut [f32], m: usize, temperature: f64) {
    let scale = (1.0 / temperature) as f32;
    s.par_chunks_mut(m).for_each(|row| {
        let largest = max(row);
        let sum = exp_in_place(row, largest, scale);
        scale_in_place(row, (1.0 / sum) as f32);
    });
}

/// From dL/dC of `C = 1 - P`, `P = softmax(S / temperature)`, to `dL/dS = -(1/temperature) P o (G - (G o P) 1)`.
pub(crate) fn softmax_backward(gradient: &mut [f32], p: &[f32], m: usize, temperature: f64) {
    let rows = gradient.par_chunks_mut(m).zip(p.par_chunks(m));
    rows.for_each(|(gradient, p)| {
        let pairs = gradient.iter().zip(p);
        let mean: f64 = pairs.map(|(&g, &p)| f64::from(g) * f64::from(p)).sum();
        for (g, &p) in gradient.iter_mut().zip(p) {
            *g = (-(f64::from(p) * (f64::from(*g) - mean)) / temperature) as f32;
        }
    });
}

/// Turns dots `h_i . e_j = sum_v p_jv x_iv` into `(sum_v p_jv ln p_jv - dot) / kappa`: the `kl` cost without the part
/// `lse_i / kappa` that is constant along a row. Plans and their gradients do not see it; the value does.
pub(crate) fn kl_cost_rows(dots: &mut [f32], negative_entropy: &[f64], kappa: f64) {
    dots.par_chunks_mut(negative_entropy.len()).for_each(|row| {
        for (dot, h) in row.iter_mut().zip(negative_entropy) {
            *dot = ((h - f64::from(*dot)) / kappa) as f32;
        }
    });
}

/// `gamma ((first_i + i)/N - (first_j + j)/M)^2` added to a block of costs.
pub(crate) struct PositionPrior {
    /// gamma.
    pub(crate) gamma: f64,
    /// N of the whole sequence.
    pub(crate) positions: usize,
    /// M of the whole sequence.
    pub(crate) teacher_positions: usize,
}

impl PositionPrior {
    /// The block's costs with the prior.
    pub(crate) fn added(&self, cost: &[f32], first: (usize, usize), m: usize) -> Vec<f32> {
        let place = |k: usize, of: usize| k as f64 / of as f64;
        let mut solved = cost.to_vec();
        for (i, row) in solved.chunks_mut(m).enumerate() {
            let x = place(first.0 + i, self.positions);
            for (j, c) in row.iter_mut().enumerate() {
                let distance = x - place(first.1 + j, self.teacher_positions);
                *c = (f64::from(*c) + self.gamma * distance * distance) as f32;
            }
        }
        solved
    }
}
