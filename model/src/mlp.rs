//! Provides the gated MLP of Shazeer, "GLU Variants Improve Transformer" (2020):
//! `down(silu(gate(x)) * up(x))`.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use distill_kernels::{device, layers};
use rayon::prelude::*;

use crate::element::{Element, elements, for_element};
use crate::layer::load_projection;
use crate::simd::{sigmoid, vectorized};
use crate::{Linear, LoadOptions, ModelConfig, Result, Weights};

/// Elements that one task works through.
const TASK_ELEMENTS: usize = 1 << 14;

/// The gated MLP of one layer.
#[derive(Debug)]
pub struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    /// Reads the projections below `prefix`, such as `model.layers.0.mlp`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        config: &ModelConfig,
        weights: &Weights,
        prefix: &str,
        options: &LoadOptions,
    ) -> Result<Self> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let load = |name: &str, inputs, outputs| {
            let prefix = format!("{prefix}.{name}");
            load_projection(
                weights,
                &prefix,
                (inputs, outputs),
                config.mlp_bias,
                options,
            )
        };
        Ok(Self {
            gate_proj: load("gate_proj", hidden, intermediate)?,
            up_proj: load("up_proj", hidden, intermediate)?,
            down_proj: load("down_proj", intermediate, hidden)?,
        })
    }

    /// # Shapes
    /// x [.., d] -> [.., d]
    ///
    /// # Errors
    /// When the last dimension is not d.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = swiglu(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?;
        self.down_proj.forward(&gated)
    }

    pub(crate) fn linears(&self) -> [&Linear; 3] {
        [&self.gate_proj, &self.up_proj, &self.down_proj]
    }
}

/// `silu(gate) * up`, with its gradient.
///
/// # Shapes
/// gate and up of one shape -> the same.
///
/// # Errors
/// When the shapes differ.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.device().is_cpu() || gate.device().is_cuda() {
        Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)?)
    } else {
        swiglu_reference(gate, up)
    }
}

/// The same in candle's own operations: for other devices, and to test the kernel against.
pub(crate) fn swiglu_reference(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok((gate.silu()? * up)?)
}

struct SwiGlu;

vectorized! {
    fn gate_span<'a, E>(gate: &'a [E], up: &'a [E], out: &'a mut [E]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let gate = gate.widen();
            *out = E::narrow(E::round(gate * sigmoid(gate)) * up.widen());
        }
    }
}

/// `silu(gate) * up` into `out`, all of one length.
pub(crate) fn gate_all<E: Element>(gate: &[E], up: &[E], out: &mut [E]) {
    out.par_chunks_mut(TASK_ELEMENTS)
        .zip(gate.par_chunks(TASK_ELEMENTS))
        .zip(up.par_chunks(TASK_ELEMENTS))
        .for_each(|((out, gate), up)| gate_span(gate, up, out));
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        check_shapes(gate_layout, up_layout)?;
        for_element!("swiglu", gate.dtype(), E => {
            let gate = elements::<E>(gate, gate_layout)?;
            let mut out = E::zeros(gate.len());
            gate_all(gate, elements::<E>(up, up_layout)?, &mut out);
            Ok((E::store(out), gate_layout.shape().clone()))
        })
    }

    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        gate_layout: &Layout,
        up: &CudaStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        check_shapes(gate_layout, up_layout)?;
        let shape = gate_layout.shape().clone();
        let (inputs, len) = ([(gate, gate_layout), (up, up_layout)], shape.elem_count());
        let out = device::run_one(gate.device(), &inputs, (gate.dtype(), len), |x, out| {
            layers::swiglu(x[0], x[1], out, len)
        })?;
        Ok((out, shape))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let both = gate.apply_op3_no_bwd(up, &grad.contiguous()?, &SwiGluGradient)?;
        Ok((Some(both.get(0)?), Some(both.get(1)?)))
    }
}

fn check_shapes(gate: &Layout, up: &Layout) -> candle_core::Result<()> {
    let (gate, up) = (gate.shape(), up.shape());
    if gate != up {
        candle_core::bail!("swiglu: gate is {gate:?}, up is {up:?}");
    }
    Ok(())
}

/// With s = sigmoid(gate): dL/dgate = g up s (1 + gate (1 - s)) and dL/dup = g gate s, stacked.
struct SwiGluGradient;

vectorized! {
    fn gradient_span<'a, E>(gate: &'a [E], up: &'a [E], grad: &'a [E], to_gate: &'a mut [E], to_up: &'a mut [E]) {
        let len = to_gate.len();
        let (gate, up, grad, to_up) = (&gate[..len], &up[..len], &grad[..len], &mut to_up[..len]);
        for i in 0..len {
            let (gate, grad) = (gate[i].widen(), grad[i].widen());
            let s = sigmoid(gate);
            to_gate[i] = E::narrow(grad * up[i].widen() * s * (1.0 + gate * (1.0 - s)));
            to_up[i] = E::narrow(grad * gate * s);
        }
    }
}

/// Gradients in gate and up, all of one length.
pub(crate) fn gate_gradient<E: Element>(
    (gate, up): (&[E], &[E]),
    grad: &[E],
    (to_gate, to_up): (&mut [E], &mut [E]),
) {
    to_gate
        .par_chunks_mut(TASK_ELEMENTS)
        .zip(to_up.par_chunks_mut(TASK_ELEMENTS))
        .zip(gate.par_chunks(TASK_ELEMENTS))
        .zip(up.par_chunks(TASK_ELEMENTS))
        .zip(grad.par_chunks(TASK_ELEMENTS))
        .for_each(|((((to_gate, to_up), gate), up), grad)| {
            gradient_span(gate, up, grad, to_gate, to_up);
        });
}

impl CustomOp3 for SwiGluGradient {
    fn name(&self) -> &'static str {
        "swiglu-gradient"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let dims = [&[2], gate_layout.dims()].concat();
        for_element!("swiglu-gradient", gate.dtype(), E => {
            let gate = elements::<E>(gate, gate_layout)?;
            let up = elements::<E>(up, up_layout)?;
            let mut out = E::zeros(2 * gate.len());
            let (to_gate, to_up) = out.split_at_mut(gate.len());
            let grad = elements::<E>(grad, grad_layout)?;
            gate_gradient((gate, up), grad, (to_gate, to_up));
            Ok((E::store(out), Shape::from(dims)))
        })
    }

    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        gate_layout: &Layout,
        up: &CudaStorage,
        up_layout: &Layout,
        grad: &CudaStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let dims = [&[2], gate_layout.dims()].concat();
        let len = gate_layout.shape().elem_count();
        let inputs = [(gate, gate_layout), (up, up_layout), (grad, grad_layout)];
        let output = (gate.dtype(), 2 * len);
        let out = device::run_one(gate.device(), &inputs, output, |x, out| {
            layers::swiglu_gradient(x[0], x[1], x[2], out, len)
        })?;
        Ok((out, Shape::from(dims)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_central_differences, assert_same_function, largest_difference, random,
    };
    use candle_core::DType;

    fn fast(x: &[Tensor]) -> Result<Tensor> {
        swiglu(&x[0], &x[1])
    }

    fn reference(x: &[Tensor]) -> Result<Tensor> {
        swiglu_reference(&x[0], &x[1])
    }

    #[test]
    fn the_kernel_equals_plain_operations() {
        // More than one task.
        let shape = [2, TASK_ELEMENTS / 2 + 3];
        let inputs = [(random(&shape, 1) * 6.0).unwrap(), random(&shape, 2)];
        // A few roundings of numbers below 8.
        assert_same_function(fast, reference, &inputs, 5e-6);
    }

    #[test]
    fn gradients_equal_central_differences() {
        assert_central_differences(fast, &[random(&[4, 5], 1), random(&[4, 5], 2)]);
    }

    #[test]
    fn low_precision_rounds_where_plain_operations_round() {
        let inputs = [random(&[4, 50], 1), random(&[4, 50], 2)];
        for (dtype, last_bit) in [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
            let low = inputs.each_ref().map(|x| x.to_dtype(dtype).unwrap());
            let difference = largest_difference(&fast(&low).unwrap(), &reference(&low).unwrap());
            // candle's silu in bf16 may itself be a last place off.
            assert!(difference <= last_bit, "{dtype:?}: {difference}");
        }
    }

    #[test]
    fn extreme_gates_neither_overflow_nor_lose_the_sign() {
        let gate = Tensor::new(
            &[-1e4f32, -100.0, 0.0, 100.0, 1e4],
            &candle_core::Device::Cpu,
        )
        .unwrap();
        let out = swiglu(&gate, &gate.ones_like().unwrap()).unwrap();
        let out = out.to_vec1::<f32>().unwrap();
        assert_eq!(out, [0.0, 0.0, 0.0, 100.0, 1e4]);
    }
}
