//! Provides RMSNorm with its gradient, computed in f32 and rounded where transformers rounds.
//!
//! From Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019):
//! `y = w * x / sqrt(mean(x^2) + eps)`.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, D, DType, Layout, Shape, Tensor, Var,
};
use distill_kernels::{device, layers};
use rayon::prelude::*;

use crate::element::{Element, elements, for_element};
use crate::layer::load_parameter;
use crate::simd::{lane_sum, vectorized};
use crate::{LoadOptions, Parameter, Result, Weights};

/// One RMSNorm and its weight [d].
#[derive(Debug, Clone)]
pub struct RmsNorm {
    name: String,
    weight: Parameter,
    eps: f64,
}

impl RmsNorm {
    /// Reads `{prefix}.weight` of `size` elements.
    ///
    /// # Errors
    /// When the weight is missing or has another shape.
    pub fn load(
        weights: &Weights,
        prefix: &str,
        size: usize,
        eps: f64,
        options: &LoadOptions,
    ) -> Result<Self> {
        let name = format!("{prefix}.weight");
        let weight = load_parameter(weights, &name, &[size], options)?;
        Ok(Self { name, weight, eps })
    }

    /// # Shapes
    /// x [.., d] -> [.., d]
    ///
    /// # Errors
    /// When the last dimension is not d.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // On a card there is no kernel for the weight's gradient.
        if x.device().is_cpu() || x.device().is_cuda() && self.weight.var().is_none() {
            let op = Normalise {
                eps: self.eps as f32,
                trained: self.weight.var().is_some(),
            };
            let weight = self.weight.tensor().to_dtype(x.dtype())?;
            Ok(x.contiguous()?.apply_op2(&weight, op)?)
        } else {
            self.forward_reference(x)
        }
    }

    /// The same in candle's own operations: for other devices, and to test the kernel against.
    pub(crate) fn forward_reference(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let scale = (mean_square + self.eps)?.sqrt()?.recip()?;
        let normalised = wide.broadcast_mul(&scale)?.to_dtype(x.dtype())?;
        Ok(normalised.broadcast_mul(&self.weight.tensor().to_dtype(x.dtype())?)?)
    }

    /// The weight and epsilon, where the weight is frozen.
    pub(crate) fn frozen(&self) -> Option<(&Tensor, f32)> {
        let frozen = self.weight.var().is_none();
        frozen.then_some((self.weight.tensor(), self.eps as f32))
    }

    /// The weight, where it is trained.
    pub(crate) fn parameters(&self) -> Option<(String, Var)> {
        let var = self.weight.var()?;
        Some((self.name.clone(), var.clone()))
    }
}

struct Normalise {
    eps: f32,
    /// Whether the weight wants a gradient.
    trained: bool,
}

/// `1 / sqrt(mean(x^2) + eps)` of one row.
#[inline(always)]
fn inverse_rms<E: Element>(x: &[E], eps: f32) -> f32 {
    let square = |i: usize| {
        let x = x[i].widen();
        x * x
    };
    1.0 / (lane_sum(x.len(), square) / x.len() as f32 + eps).sqrt()
}

vectorized! {
    /// One row.
    fn normalise_row<'a, E>(x: &'a [E], weight: &'a [E], eps: f32, out: &'a mut [E]) {
        let scale = inverse_rms(x, eps);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = E::narrow(weight.widen() * E::round(x.widen() * scale));
        }
    }
}

/// RMSNorm of every row.
///
/// # Shapes
/// x and out [n, d], weight [d]
pub(crate) fn normalise<E: Element>(x: &[E], weight: &[E], eps: f32, out: &mut [E]) {
    out.par_chunks_mut(weight.len())
        .zip(x.par_chunks(weight.len()))
        .with_min_len(TASK_ROWS)
        .for_each(|(out, x)| normalise_row(x, weight, eps, out));
}

impl CustomOp2 for Normalise {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        check_last_dim(x_layout, weight_layout)?;
        for_element!("rms-norm", x.dtype(), E => {
            let weight = elements::<E>(weight, weight_layout)?;
            let x = elements::<E>(x, x_layout)?;
            let mut out = E::zeros(x.len());
            normalise(x, weight, self.eps, &mut out);
            Ok((E::store(out), x_layout.shape().clone()))
        })
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let size = check_last_dim(x_layout, weight_layout)?;
        let shape = x_layout.shape().clone();
        let inputs = [(x, x_layout), (weight, weight_layout)];
        let len = shape.elem_count();
        let out = device::run_one(x.device(), &inputs, (x.dtype(), len), |x, out| {
            layers::rms_norm(x[0], x[1], out, (len / size, size), self.eps)
        })?;
        Ok((out, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let to_input = InputGradient { eps: self.eps };
        let grad_x = x.apply_op3_no_bwd(weight, &grad, &to_input)?;
        let grad_weight = self.trained.then(|| {
            let to_weight = WeightGradient {
                eps: self.eps,
                size: weight.elem_count(),
            };
            x.apply_op2_no_bwd(&grad, &to_weight)
        });
        Ok((Some(grad_x), grad_weight.transpose()?))
    }
}

/// With n = x / rms and g = w * dL/dy: dL/dx = (g - n * mean(g * n)) / rms.
struct InputGradient {
    eps: f32,
}

vectorized! {
    /// One row; added to what `out` holds where `add` says so.
    fn input_gradient_row<'a, E>(x: &'a [E], weight: &'a [E], grad: &'a [E], eps: f32, add: bool, out: &'a mut [E]) {
        let size = out.len();
        let (x, weight, grad) = (&x[..size], &weight[..size], &grad[..size]);
        let scale = inverse_rms(x, eps);
        let along = lane_sum(size, |i| weight[i].widen() * grad[i].widen() * (x[i].widen() * scale)) / size as f32;
        for i in 0..size {
            let gradient = scale * (weight[i].widen() * grad[i].widen() - x[i].widen() * scale * along);
            let before = if add { out[i].widen() } else { 0.0 };
            out[i] = E::narrow(before + gradient);
        }
    }
}

/// dL/dx of every row from dL/dy, stored into `out` or added to it.
///
/// # Shapes
/// x, grad and out [n, d], weight [d]
pub(crate) fn input_gradient<E: Element>(
    x: &[E],
    weight: &[E],
    grad: &[E],
    eps: f32,
    add: bool,
    out: &mut [E],
) {
    let size = weight.len();
    out.par_chunks_mut(size)
        .zip(x.par_chunks(size).zip(grad.par_chunks(size)))
        .with_min_len(TASK_ROWS)
        .for_each(|(out, (x, grad))| input_gradient_row(x, weight, grad, eps, add, out));
}

impl CustomOp3 for InputGradient {
    fn name(&self) -> &'static str {
        "rms-norm-input-gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        for_element!("rms-norm-input-gradient", x.dtype(), E => {
            let x = elements::<E>(x, x_layout)?;
            let weight = elements::<E>(weight, weight_layout)?;
            let grad = elements::<E>(grad, grad_layout)?;
            let mut out = E::zeros(x.len());
            input_gradient(x, weight, grad, self.eps, false, &mut out);
            Ok((E::store(out), x_layout.shape().clone()))
        })
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        grad: &CudaStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let size = check_last_dim(x_layout, weight_layout)?;
        let shape = x_layout.shape().clone();
        let inputs = [(x, x_layout), (weight, weight_layout), (grad, grad_layout)];
        let len = shape.elem_count();
        let out = device::run_one(x.device(), &inputs, (x.dtype(), len), |x, out| {
            layers::rms_norm_gradient(x[0], x[1], x[2], out, (len / size, size), self.eps)
        })?;
        Ok((out, shape))
    }
}

/// Rows that one task works through at least.
const TASK_ROWS: usize = 16;

/// Rows of one partial sum of the weight's gradient: fixed, so that the sum's order does not depend
/// on the number of threads.
const WEIGHT_GRADIENT_ROWS: usize = 64;

/// dL/dw = sum over rows of dL/dy * x / rms.
struct WeightGradient {
    eps: f32,
    size: usize,
}

impl WeightGradient {
    fn run<E: Element>(&self, x: &[E], grad: &[E]) -> Vec<E> {
        let size = self.size;
        let block = WEIGHT_GRADIENT_ROWS * size;
        let partial = |(x, grad): (&[E], &[E])| {
            let mut sum = vec![0f32; size];
            for (x, grad) in x.chunks_exact(size).zip(grad.chunks_exact(size)) {
                let scale = inverse_rms(x, self.eps);
                for ((sum, x), grad) in sum.iter_mut().zip(x).zip(grad) {
                    *sum += grad.widen() * E::round(x.widen() * scale);
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
            .map(|i| E::narrow(partials.iter().map(|partial| partial[i]).sum()))
            .collect()
    }
}

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        "rms-norm-weight-gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        for_element!("rms-norm-weight-gradient", x.dtype(), E => {
            let grad = elements::<E>(grad, grad_layout)?;
            let out = self.run(elements::<E>(x, x_layout)?, grad);
            Ok((E::store(out), Shape::from(self.size)))
        })
    }
}

/// The size of a row.
fn check_last_dim(x: &Layout, weight: &Layout) -> candle_core::Result<usize> {
    let size = weight.shape().dims1()?;
    match x.dims().last() {
        Some(last) if *last == size && size > 0 => Ok(size),
        _ => candle_core::bail!("rms-norm: a weight of {size} does not fit {:?}", x.shape()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_central_differences, assert_same_function, random, values};

    fn norm(weight: &Tensor) -> RmsNorm {
        RmsNorm {
            name: "norm.weight".into(),
            weight: Parameter::Trainable(Var::from_tensor(weight).unwrap()),
            eps: 1e-6,
        }
    }

    #[test]
    fn the_kernel_equals_plain_operations() {
        // More rows than one partial sum of the weight's gradient.
        let (rows, size) = (WEIGHT_GRADIENT_ROWS + 5, 37);
        let inputs = [random(&[rows, size], 1), random(&[size], 2)];
        // Sums of 37 and 69 terms of order 1 in f32, in another order.
        let fast = |x: &[Tensor]| norm(&x[1]).forward(&x[0]);
        assert_same_function(
            fast,
            |x| norm(&x[1]).forward_reference(&x[0]),
            &inputs,
            2e-5,
        );
    }

    #[test]
    fn gradients_equal_central_differences() {
        let inputs = [random(&[3, 11], 1), random(&[11], 2)];
        assert_central_differences(|x| norm(&x[1]).forward(&x[0]), &inputs);
    }

    #[test]
    fn low_precision_rounds_before_and_after_the_weight() {
        let weight = random(&[64], 2);
        for dtype in [DType::BF16, DType::F16] {
            let x = random(&[9, 64], 1).to_dtype(dtype).unwrap();
            let norm = norm(&weight);
            let (fast, reference) = (
                values(&norm.forward(&x).unwrap()),
                values(&norm.forward_reference(&x).unwrap()),
            );
            // The mean square is summed in another order, which moves a value across a rounding
            // boundary now and then, by one unit in the last place.
            let differing = fast.iter().zip(&reference).filter(|(a, b)| a != b).count();
            assert!(differing * 50 < fast.len(), "{dtype:?}: {differing}");
        }
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let weight = random(&[8], 2);
        let norm = RmsNorm {
            weight: Parameter::Frozen(weight.clone()),
            ..norm(&weight)
        };
        assert!(norm.parameters().is_none());
        let x = Var::from_tensor(&random(&[2, 8], 1)).unwrap();
        let store = norm
            .forward(&x)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        assert!(store.get(&x).is_some());
        assert!(store.get(&weight).is_none());
    }

    #[test]
    fn a_weight_of_another_size_is_refused() {
        assert!(norm(&random(&[8], 2)).forward(&random(&[2, 9], 1)).is_err());
    }
}
