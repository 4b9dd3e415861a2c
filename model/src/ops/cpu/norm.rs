//! Provides RMSNorm of rows on the CPU, with its gradients.

use rayon::prelude::*;

use crate::simd::{lane_sum, vectorized};

/// Rows that one task works through at least.
const TASK_ROWS: usize = 16;

/// Rows of one partial sum of the weight's gradient: fixed, so that the sum's order does not depend on the number of threads.
const WEIGHT_GRADIENT_ROWS: usize = 64;

/// `1 / sqrt(mean(x^2) + eps)` of one row.
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let square = |i: usize| {
        let x = x[i];
        x * x
    };
    1.0 / (lane_sum(x.len(), square) / x.len() as f32 + eps).sqrt()
}

vectorized! {
    /// One row.
    fn normalise_row<'a>(x: &'a [f32], weight: &'a [f32], eps: f32, out: &'a mut [f32]) {
        let scale = inverse_rms(x, eps);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = weight * (x * scale);
        }
    }
}

/// RMSNorm of every row.
///
/// # Shapes
/// x and out [n, d], weight [d]
pub(super) fn normalise(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    out.par_chunks_mut(weight.len())
        .zip(x.par_chunks(weight.len()))
        .with_min_len(TASK_ROWS)
        .for_each(|(out, x)| normalise_row(x, weight, eps, out));
}

vectorized! {
    /// With n = x / rms and g = w * dL/dy: dL/dx = (g - n * mean(g * n)) / rms of one row; added to what `out` holds where `add` says so.
    fn input_gradient_row<'a>(x: &'a [f32], weight: &'a [f32], grad: &'a [f32], eps: f32, add: bool, out: &'a mut [f32]) {
        let size = out.len();
        let (x, weight, grad) = (&x[..size], &weight[..size], &grad[..size]);
        let scale = inverse_rms(x, eps);
        let along = lane_sum(size, |i| weight[i] * grad[i] * (x[i] * scale)) / size as f32;
        for i in 0..size {
            let gradient = scale * (weight[i] * grad[i] - x[i] * scale * along);
            let before = if add { out[i] } else { 0.0 };
            out[i] = before + gradient;
        }
    }
}

/// dL/dx of every row from dL/dy, stored into `out` or added to it.
///
/// # Shapes
/// x, grad and out [n, d], weight [d]
pub(super) fn input_gradient(
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    eps: f32,
    add: bool,
    out: &mut [f32],
) {
    let size = weight.len();
    out.par_chunks_mut(size)
        .zip(x.par_chunks(size).zip(grad.par_chunks(size)))
        .with_min_len(TASK_ROWS)
        .for_each(|(out, (x, grad))| input_gradient_row(x, weight, grad, eps, add, out));
}

/// dL/dw = sum over rows of dL/dy * x / rms.
///
/// # Shapes
/// x and grad [n, d] -> [d]
pub(super) fn weight_gradient(x: &[f32], grad: &[f32], eps: f32, size: usize) -> Vec<f32> {
    let block = WEIGHT_GRADIENT_ROWS * size;
    let partial = |(x, grad): (&[f32], &[f32])| {
        let mut sum = vec![0f32; size];
        for (x, grad) in x.chunks_exact(size).zip(grad.chunks_exact(size)) {
            let scale = inverse_rms(x, eps);
            for ((sum, x), grad) in sum.iter_mut().zip(x).zip(grad) {
                *sum += grad * (x * scale);
            }
        }
        sum
    };
    let partials: Vec<Vec<f32>> = x
        .par_chunks(block)
        .zip(grad.par_chunks(block))
        .map(partial)
        .collect();
    (0..size)
        .map(|i| partials.iter().map(|partial| partial[i]).sum())
        .collect()
}
