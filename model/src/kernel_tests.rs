//! Checks the card's kernels, run by the emulator, against the operations of the CPU.

use candle_core::{DType, Device, Tensor};
use distill_kernels::{Call, Emulator, LAYERS, Module, NF4, layers, nf4};

use crate::mlp::swiglu;
use crate::nf4::{Nf4Matrix, QuantOptions, QuantType, Rounding};
use crate::norm::RmsNorm;
use crate::test_support::{gradients, largest_difference, random, values};
use crate::{LoadOptions, Weights};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// One call's output, flat.
pub(crate) fn emulated(
    module: &'static Module,
    inputs: &[&Tensor],
    output: (DType, usize),
    call: impl FnOnce(&[usize], usize) -> candle_core::Result<Call>,
) -> Tensor {
    let emulator = Emulator::of(module).unwrap();
    let calls = |x: &[usize], out: &[usize]| Ok(vec![call(x, out[0])?]);
    let made = emulator.compute(inputs, &[output], calls);
    made.unwrap().remove(0)
}

/// Checks a kernel's output against the CPU's: in f32, where sums run in another order and exp is another library's, to 1e-6 of the
/// largest value; in 16 bits nearly everywhere the same, and elsewhere to two units in the last place, for a value that is rounded
/// twice.
#[track_caller]
fn assert_close(kernel: Tensor, cpu: &Tensor) {
    let bits = match cpu.dtype() {
        DType::BF16 => 7,
        DType::F16 => 10,
        _ => return assert_near(&kernel, cpu, 1e-6),
    };
    assert_eq!(kernel.dtype(), cpu.dtype());
    let (kernel, cpu) = (values(&kernel), values(cpu));
    assert_eq!(kernel.len(), cpu.len());
    let mut differing = 0;
    for (i, (a, b)) in kernel.iter().zip(&cpu).enumerate() {
        let unit = b.abs().max(1e-3).log2().floor().exp2() / (1 << bits) as f32;
        assert!(
            (a - b).abs() <= 2.0 * unit,
            "element {i}: {a}, on the CPU {b}"
        );
        differing += usize::from(a != b);
    }
    assert!(
        differing * 50 <= kernel.len(),
        "{differing} of {} differ",
        kernel.len()
    );
}

/// Checks that no element is further away than `tolerance` times the largest.
#[track_caller]
pub(crate) fn assert_near(kernel: &Tensor, cpu: &Tensor, tolerance: f32) {
    assert_eq!(kernel.dtype(), cpu.dtype());
    let largest = values(cpu).iter().fold(0f32, |max, x| max.max(x.abs()));
    let difference = largest_difference(kernel, cpu);
    assert!(
        difference <= tolerance * largest,
        "differs by {difference}, of {largest}"
    );
}

fn low(x: &Tensor, dtype: DType) -> Tensor {
    x.to_dtype(dtype).unwrap()
}

#[test]
fn the_card_unpacks_the_same_matrix_bit_for_bit() {
    // Odd widths, so that rows begin inside a byte and the last byte is half used; a last block that is not full; more blocks of
    // scales than one; blocks below and above what a warp takes at once.
    for (rows, columns, block_size) in [(7, 33, 64), (64, 300, 32), (3, 129, 256), (1, 1, 64)] {
        let weights = values(&random(&[rows, columns], 1));
        for (quant_type, double_quant, rounding) in [
            (QuantType::Nf4, true, Rounding::BF16),
            (QuantType::Nf4, false, Rounding::F32),
            (QuantType::Fp4, true, Rounding::F16),
        ] {
            let options = QuantOptions {
                quant_type,
                block_size,
                double_quant,
            };
            let matrix = Nf4Matrix::quantize_as(options, &weights, rows, columns, rounding);
            let matrix = matrix.unwrap();
            let parts = matrix.parts(&Device::Cpu).unwrap();
            let parts: Vec<&Tensor> = parts.iter().collect();
            for dtype in FLOATS {
                let unpack = |parts: &[usize], out| nf4::dequantize(&matrix.packed(parts), out);
                let out = emulated(&NF4, &parts, (dtype, rows * columns), unpack);
                let expected = matrix.dequantize(dtype, &Device::Cpu).unwrap();
                assert_eq!(
                    values(&out),
                    values(&expected),
                    "{rows} x {columns}, {dtype:?}"
                );
            }
        }
    }
}

/// A frozen norm of `size` elements.
fn norm(weight: &Tensor, eps: f64) -> RmsNorm {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors = std::collections::HashMap::from([("n.weight", weight.clone())]);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let weights = Weights::open_file(&path).unwrap();
    RmsNorm::load(
        &weights,
        "n",
        weight.elem_count(),
        eps,
        &LoadOptions::reference(),
    )
    .unwrap()
}

#[test]
fn rms_norm_and_its_gradient_are_those_of_the_cpu() {
    // Narrower and wider than a block of threads.
    for (rows, size) in [(5, 37), (3, 1000)] {
        let weight = random(&[size], 2);
        let norm = norm(&weight, 1e-6);
        for dtype in FLOATS {
            let (x, weight) = (low(&random(&[rows, size], 1), dtype), low(&weight, dtype));
            let output = (dtype, rows * size);
            let kernel = emulated(&LAYERS, &[&x, &weight], output, |x, out| {
                layers::rms_norm(x[0], x[1], out, (rows, size), 1e-6)
            });
            assert_close(kernel, &norm.forward(&x).unwrap());

            let grad = low(&random(&[rows, size], 3), dtype);
            let kernel = emulated(&LAYERS, &[&x, &weight, &grad], output, |x, out| {
                layers::rms_norm_gradient(x[0], x[1], x[2], out, (rows, size), 1e-6)
            });
            let cpu = gradients(|x| norm.forward(&x[0]), &[x], &grad);
            assert_close(kernel, &cpu[0]);
        }
    }
}

#[test]
fn swiglu_and_its_gradients_are_those_of_the_cpu() {
    let len = 700;
    for dtype in FLOATS {
        let gate = low(&(random(&[len], 1) * 8.0).unwrap(), dtype);
        let (up, grad) = (
            low(&random(&[len], 2), dtype),
            low(&random(&[len], 3), dtype),
        );
        let kernel = emulated(&LAYERS, &[&gate, &up], (dtype, len), |x, out| {
            layers::swiglu(x[0], x[1], out, len)
        });
        assert_close(kernel, &swiglu(&gate, &up).unwrap());

        let output = (dtype, 2 * len);
        let kernel = emulated(&LAYERS, &[&gate, &up, &grad], output, |x, out| {
            layers::swiglu_gradient(x[0], x[1], x[2], out, len)
        });
        let cpu = gradients(|x| swiglu(&x[0], &x[1]), &[gate, up], &grad);
        assert_close(kernel, &Tensor::cat(&cpu, 0).unwrap());
    }
    // Nothing overflows at the ends.
    let gate = Tensor::new(&[-1e4f32, -100.0, 0.0, 100.0, 1e4], &Device::Cpu).unwrap();
    let one = gate.ones_like().unwrap();
    let kernel = emulated(&LAYERS, &[&gate, &one], (DType::F32, 5), |x, out| {
        layers::swiglu(x[0], x[1], out, 5)
    });
    assert_close(kernel, &swiglu(&gate, &one).unwrap());
}
