//! Provides SwiGLU on the CPU, with its gradient.

use rayon::prelude::*;

use crate::simd::{sigmoid, vectorized};

/// Elements that one task works through.
const TASK_ELEMENTS: usize = 1 << 14;

vectorized! {
    fn gate_span<'a>(gate: &'a [f32], up: &'a [f32], out: &'a mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(*gate) * up;
        }
    }
}

/// `silu(gate) * up` into `out`, all of one length.
pub(super) fn gate_all(gate: &[f32], up: &[f32], out: &mut [f32]) {
    out.par_chunks_mut(TASK_ELEMENTS)
        .zip(gate.par_chunks(TASK_ELEMENTS))
        .zip(up.par_chunks(TASK_ELEMENTS))
        .for_each(|((out, gate), up)| gate_span(gate, up, out));
}

vectorized! {
    /// With s = sigmoid(gate): dL/dgate = g up s (1 + gate (1 - s)) and dL/dup = g gate s.
    fn gradient_span<'a>(gate: &'a [f32], up: &'a [f32], grad: &'a [f32], to_gate: &'a mut [f32], to_up: &'a mut [f32]) {
        let len = to_gate.len();
        let (gate, up, grad, to_up) = (&gate[..len], &up[..len], &grad[..len], &mut to_up[..len]);
        for i in 0..len {
            let (gate, grad) = (gate[i], grad[i]);
            let s = sigmoid(gate);
            to_gate[i] = grad * up[i] * s * (1.0 + gate * (1.0 - s));
            to_up[i] = grad * gate * s;
        }
    }
}

/// Gradients in gate and up, all of one length.
pub(super) fn gate_gradient(
    (gate, up): (&[f32], &[f32]),
    grad: &[f32],
    (to_gate, to_up): (&mut [f32], &mut [f32]),
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor};

    use super::*;
    use crate::Result;
    use crate::ops::Ops;
    use crate::ops::cpu::Cpu;
    use crate::reference;
    use crate::test_support::{Bridge, assert_central_differences, assert_same_function, random};

    /// As one of candle's operations.
    fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        fn pair(ops: &mut Cpu, x: &[Tensor]) -> Result<[Vec<f32>; 2]> {
            Ok([ops.array(&x[0])?, ops.array(&x[1])?])
        }
        Bridge::apply(
            &[gate.clone(), up.clone()],
            |x| {
                let mut ops = Cpu::new(DType::F32);
                let pair = pair(&mut ops, x)?;
                let out = ops.swiglu(&pair)?;
                ops.tensor(&out, x[0].dims())
            },
            |x, grad| {
                let mut ops = Cpu::new(DType::F32);
                let (pair, grad) = (pair(&mut ops, x)?, ops.array(grad)?);
                let grads = ops.swiglu_gradient(pair, grad)?;
                let tensors = grads.iter().map(|grad| ops.tensor(grad, x[0].dims()));
                tensors.collect()
            },
        )
    }

    fn fast(x: &[Tensor]) -> Result<Tensor> {
        swiglu(&x[0], &x[1])
    }

    fn reference(x: &[Tensor]) -> Result<Tensor> {
        reference::swiglu(&x[0], &x[1])
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
