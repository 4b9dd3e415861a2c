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

