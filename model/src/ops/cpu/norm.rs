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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor, Var};

    use super::WEIGHT_GRADIENT_ROWS;
    use crate::norm::RmsNorm;
    use crate::ops::Ops;
    use crate::ops::cpu::Cpu;
    use crate::test_support::{
        Bridge, assert_central_differences, assert_same_function, random, values,
    };
    use crate::{Gradients, Parameter, Result, reference};

    const NAME: &str = "norm.weight";

    fn norm(weight: &Tensor) -> RmsNorm {
        let var = Var::from_tensor(weight).unwrap();
        RmsNorm::new(NAME, Parameter::Trainable(var), 1e-6)
    }

    /// As one of candle's operations, of x and the weight.
    fn fast(x: &[Tensor]) -> Result<Tensor> {
        Bridge::apply(
            x,
            |x| {
                let mut ops = Cpu::new(DType::F32);
                let input = ops.array(&x[0])?;
                let out = ops.rms_norm(&norm(&x[1]), &input)?;
                ops.tensor(&out, x[0].dims())
            },
            |x, grad| {
                let mut ops = Cpu::new(DType::F32);
                let (input, grad) = (ops.array(&x[0])?, ops.array(grad)?);
                let mut gradients = Gradients::new();
                let norm = norm(&x[1]);
                let to_x = ops.rms_norm_gradient(&norm, &input, &grad, None, &mut gradients)?;
                let to_weight = gradients.get(NAME).unwrap().clone();
                Ok(vec![ops.tensor(&to_x, x[0].dims())?, to_weight])
            },
        )
    }

    /// With the weight in the graph.
    fn plain(x: &[Tensor]) -> Result<Tensor> {
        let one = x[1].ones_like()?.detach();
        let normed = reference::rms_norm(&norm(&one), &x[0])?;
        Ok(normed.broadcast_mul(&x[1])?)
    }

    #[test]
    fn the_kernel_equals_plain_operations() {
        // More rows than one partial sum of the weight's gradient.
        let (rows, size) = (WEIGHT_GRADIENT_ROWS + 5, 37);
        let inputs = [random(&[rows, size], 1), random(&[size], 2)];
        // Sums of 37 and 69 terms of order 1 in f32, in another order.
        assert_same_function(fast, plain, &inputs, 2e-5);
    }

    #[test]
    fn gradients_equal_central_differences() {
        assert_central_differences(fast, &[random(&[3, 11], 1), random(&[11], 2)]);
    }

    #[test]
    fn a_gradient_is_added_to_the_stream_s() {
        let (x, grad) = (random(&[4, 9], 1), random(&[4, 9], 3));
        let (norm, before) = (norm(&random(&[9], 2)), random(&[4, 9], 4));
        let mut ops = Cpu::new(DType::F32);
        let [x, grad, stream] = [&x, &grad, &before].map(|x| ops.array(x).unwrap());
        let mut gradients = Gradients::new();
        let mut run = |stream| ops.rms_norm_gradient(&norm, &x, &grad, stream, &mut gradients);
        let (alone, added) = (run(None).unwrap(), run(Some(stream)).unwrap());
        for ((alone, added), before) in alone.iter().zip(&added).zip(values(&before)) {
            assert_eq!(before + alone, *added);
        }
    }

    #[test]
    fn activations_in_sixteen_bits_are_rounded_once() {
        let (x, weight) = (random(&[9, 64], 1), random(&[64], 2));
        for dtype in [DType::BF16, DType::F16] {
            let run = |dtype| {
                let mut ops = Cpu::new(dtype);
                let input = ops.array(&x).unwrap();
                let out = ops.rms_norm(&norm(&weight), &input).unwrap();
                ops.tensor(&out, &[9, 64]).unwrap()
            };
            let rounded = run(DType::F32).to_dtype(dtype).unwrap();
            assert_eq!(values(&run(dtype)), values(&rounded), "{dtype:?}");
        }
    }
}
