//! Checks the card's kernels, run by the emulator, against the operations of the CPU.

use candle_core::{DType, Device, Tensor, Var};
use distill_kernels::{Call, EMULATED, Emulator, Module, NF4, nf4};

use super::Cuda;
use crate::checkpoint::{Checkpointing, gradients_on};
use crate::nf4::{Nf4Matrix, QuantOptions, QuantType, Rounding};
use crate::norm::RmsNorm;
use crate::ops::Ops;
use crate::ops::cpu::Cpu;
use crate::test_support::{largest_difference, random, values};
use crate::testing::{TinyModel, write_tiny_model};
use crate::{
    Base, Decoder, Gradients, LoadOptions, LoraConfig, ModelConfig, Parameter, Piece, Weights,
};

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
                let unpack = |parts: &[usize], out| {
                    Ok(nf4::dequantize(&[matrix.packed(parts)], out)?.remove(0))
                };
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

#[test]
fn matrices_that_stand_in_one_product_are_unpacked_together() {
    // Of two heights with a last block of scales that is not full; of three; and such as cannot be: plain scales.
    for (heights, double_quant) in [
        (&[64, 48][..], true),
        (&[7, 64, 300], true),
        (&[8, 8], false),
    ] {
        let options = QuantOptions {
            quant_type: QuantType::Nf4,
            block_size: 64,
            double_quant,
        };
        let columns = 64;
        let matrix = |(i, rows): (usize, &usize)| {
            let weights = values(&random(&[*rows, columns], i as u64));
            let matrix = Nf4Matrix::quantize_as(options, &weights, *rows, columns, Rounding::BF16);
            matrix.unwrap()
        };
        let matrices: Vec<_> = heights.iter().enumerate().map(matrix).collect();
        let parts = |matrix: &Nf4Matrix| matrix.parts(&Device::Cpu).unwrap();
        let parts: Vec<Tensor> = matrices.iter().flat_map(parts).collect();
        let inputs: Vec<&Tensor> = parts.iter().collect();
        let len = heights.iter().sum::<usize>() * columns;
        for dtype in FLOATS {
            let count = inputs.len() / matrices.len();
            let made = (EMULATED.compute)(&inputs, &[(dtype, len)], &|x, out| {
                let packed = matrices.iter().zip(x.chunks(count));
                let packed: Vec<_> = packed.map(|(matrix, own)| matrix.packed(own)).collect();
                let calls = nf4::dequantize(&packed, out[0])?;
                assert_eq!(calls.len(), if double_quant { 1 } else { heights.len() });
                Ok(calls)
            });
            let dense = |matrix: &Nf4Matrix| matrix.dequantize(dtype, &Device::Cpu).unwrap();
            let expected: Vec<_> = matrices.iter().map(dense).collect();
            let expected = Tensor::cat(&expected, 0).unwrap();
            assert_eq!(values(&made.unwrap()[0]), values(&expected), "{dtype:?}");
        }
    }
}

fn bare(dtype: DType) -> (Cpu, Cuda) {
    (Cpu::new(dtype), Cuda::bare(EMULATED, dtype))
}

fn trained_norm(size: usize) -> RmsNorm {
    let var = Var::from_tensor(&random(&[size], 2)).unwrap();
    RmsNorm::new("norm", Parameter::Trainable(var), 1e-6)
}

#[test]
fn rms_norm_and_its_gradients_are_those_of_the_cpu() {
    // Narrower and wider than a block of threads.
    for (rows, size) in [(5, 37), (3, 1000)] {
        let norm = trained_norm(size);
        let dims = [rows, size];
        let (x, grad, before) = (random(&dims, 1), random(&dims, 3), random(&dims, 4));
        for dtype in FLOATS {
            let (mut cpu, mut card) = bare(dtype);
            let input = cpu.array(&x).unwrap();
            let out = cpu.rms_norm(&norm, &input).unwrap();
            let out = low(&cpu.tensor(&out, &dims).unwrap(), dtype);
            assert_close(card.rms_norm(&norm, &x).unwrap(), &out);
            let (again, copy) = card.rms_norm_and_copy(&norm, &x).unwrap();
            assert_close(again, &out);
            assert_eq!(values(&copy), values(&x));

            let (mut on_cpu, mut on_card) = (Gradients::new(), Gradients::new());
            let wide = cpu.array(&grad).unwrap();
            for stream in [None, Some(&before)] {
                let own = stream.map(|x| cpu.array(x).unwrap());
                let to_x = cpu.rms_norm_gradient(&norm, &input, &wide, own, &mut on_cpu);
                let to_x = cpu.tensor(&to_x.unwrap(), &dims).unwrap();
                let stream = stream.cloned();
                let made = card.rms_norm_gradient(&norm, &x, &grad, stream, &mut on_card);
                assert_close(made.unwrap(), &to_x);
            }
            let (on_cpu, on_card) = (on_cpu.get("norm").unwrap(), on_card.get("norm").unwrap());
            assert_near(on_card, on_cpu, 2e-6);
        }
    }
}

#[test]
fn swiglu_and_its_gradients_are_those_of_the_cpu() {
    let (rows, width) = (7, 100);
    let gate = (random(&[rows, width], 1) * 8.0).unwrap();
    let extreme = Tensor::new(&[[-1e4f32, -100.0, 0.0, 100.0, 1e4]], &Device::Cpu).unwrap();
    for dtype in FLOATS {
        for gate in [&gate, &extreme] {
            let dims = gate.dims();
            let (gate, up) = (low(gate, dtype), low(&random(dims, 2), dtype));
            let grad = low(&random(dims, 3), dtype);
            let (mut cpu, mut card) = bare(dtype);
            let pair = [cpu.array(&gate).unwrap(), cpu.array(&up).unwrap()];
            let both = Tensor::cat(&[&gate, &up], 1).unwrap();
            let out = cpu.swiglu(&pair).unwrap();
            let out = low(&cpu.tensor(&out, dims).unwrap(), dtype);
            assert_close(card.swiglu(&both).unwrap(), &out);
            let wide = cpu.array(&grad).unwrap();
            let [to_gate, to_up] = cpu.swiglu_gradient(pair, wide).unwrap();
            let to = [to_gate, to_up].map(|x| cpu.tensor(&x, dims).unwrap());
            let to = low(&Tensor::cat(&to, 1).unwrap(), dtype);
            assert_close(card.swiglu_gradient(both, grad).unwrap(), &to);
        }
    }
}

/// A model with every B away from zero, so that every A has a gradient too.
fn model(model: &TinyModel, options: &LoadOptions) -> Decoder {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path(), model, 1).unwrap();
    let config = ModelConfig::load(dir.path()).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    let decoder = Decoder::load(&config, &weights, options).unwrap();
    for (i, (name, var)) in decoder.parameters().into_iter().enumerate() {
        if name.ends_with("lora_B.weight") {
            let b = (random(var.dims(), i as u64) * 0.1).unwrap();
            var.set(&b).unwrap();
        }
    }
    decoder
}

fn options(base: Base, dtype: DType) -> LoadOptions {
    LoadOptions {
        base,
        dtype,
        lora: (base != Base::Trainable).then(LoraConfig::default),
        ..LoadOptions::reference()
    }
}

/// Checks hidden states and every gradient of a pass on the card against the CPU's, to `tolerance` of the largest element.
#[track_caller]
fn check(
    decoder: &Decoder,
    lengths: Option<&[usize]>,
    checkpointing: Checkpointing,
    tolerance: f32,
) {
    let count = lengths.map_or(2 * 11, |lengths| lengths.iter().sum());
    let ids: Vec<u32> = (0..count as u32).map(|i| (i * i * 7 + 5) % 96).collect();
    let shape = if lengths.is_some() {
        (1, count)
    } else {
        (2, count / 2)
    };
    let ids = Tensor::from_vec(ids, shape, &Device::Cpu).unwrap();
    let upstream = random(&[shape.0, shape.1, 64], 5);
    let cpu = Cpu::new(decoder.dtype());
    let card = Cuda::on(EMULATED, decoder).unwrap();
    let run = (&ids, lengths, checkpointing, &upstream);
    let (hidden, expected) = gradients_on(decoder, cpu, run).unwrap();
    let (on_card, found) = gradients_on(decoder, card, run).unwrap();
    assert_near(&on_card, &hidden, tolerance);
    let names: Vec<_> = decoder
        .parameters()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    // A head of its own gets its gradient from the loss.
    for name in names.iter().filter(|name| *name != "lm_head.weight") {
        let (found, expected) = (found.get(name), expected.get(name));
        let (Some(found), Some(expected)) = (found, expected) else {
            panic!("{name} has no gradient");
        };
        assert_eq!(found.dims(), expected.dims());
        let largest = values(expected)
            .iter()
            .fold(0f32, |max, x| max.max(x.abs()));
        let difference = largest_difference(found, expected);
        assert!(
            difference <= tolerance * largest,
            "{name} differs by {difference}, of {largest}"
        );
    }
}

/// f32 sums of some hundred terms in another order.
const NEAR: f32 = 2e-5;

#[test]
fn a_whole_pass_with_adapters_is_that_of_the_cpu() {
    let qwen2 = model(&TinyModel::qwen2(), &options(Base::QuantizeNf4, DType::F32));
    check(&qwen2, None, Checkpointing::Every(1), NEAR);
    check(&qwen2, None, Checkpointing::Every(2), NEAR);
    check(&qwen2, None, Checkpointing::Off, NEAR);
    check(&qwen2, Some(&[3, 9, 1]), Checkpointing::Every(1), NEAR);
    let dense = model(&TinyModel::qwen2(), &options(Base::AsStored, DType::F32));
    check(&dense, None, Checkpointing::Every(1), NEAR);
}

#[test]
fn families_with_norms_of_heads_windows_and_layers_that_turn_nothing() {
    for family in [
        TinyModel::qwen3(),
        TinyModel::mistral(),
        TinyModel::smollm3(),
    ] {
        let decoder = model(&family, &options(Base::QuantizeNf4, DType::F32));
        check(&decoder, None, Checkpointing::Every(1), NEAR);
    }
}

#[test]
fn training_of_every_weight_is_that_of_the_cpu() {
    for family in [TinyModel::qwen2(), TinyModel::qwen3()] {
        let decoder = model(&family, &options(Base::Trainable, DType::F32));
        check(&decoder, None, Checkpointing::Every(1), NEAR);
    }
}

#[test]
fn sixteen_bits_differ_from_the_cpu_by_their_rounding() {
    // A card's adapters and gradients between products are in 16 bits too; two layers multiply what each of them rounds.
    for (dtype, tolerance) in [(DType::BF16, 0.04), (DType::F16, 0.005)] {
        let decoder = model(&TinyModel::qwen2(), &options(Base::QuantizeNf4, dtype));
        check(&decoder, None, Checkpointing::Every(1), tolerance);
    }
}

#[test]
fn sequences_of_unlike_length_in_a_cache_are_those_of_the_cpu() {
    for shape in [TinyModel::qwen2(), TinyModel::mistral(), TinyModel::qwen3()] {
        let decoder = &model(&shape, &options(Base::QuantizeNf4, DType::F32));
        let cache = || decoder.new_cache(3, 40).unwrap();
        let (mut on_card, mut on_cpu) = (cache(), cache());
        let mut check = |pieces: &[(usize, &[u32])]| {
            let pieces: Vec<Piece<'_>> = pieces
                .iter()
                .map(|&(slot, ids)| Piece { slot, ids })
                .collect();
            let card = Cuda::on(EMULATED, decoder).unwrap();
            let made = decoder.extend_by(card, &pieces, &mut on_card).unwrap();
            let cpu = Cpu::new(DType::F32);
            let expected = decoder.extend_by(cpu, &pieces, &mut on_cpu).unwrap();
            assert_near(&made, &expected, NEAR);
        };
        check(&[(1, &[5; 33])]);
        check(&[(0, &[3, 4]), (2, &[7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8])]);
        check(&[(0, &[1]), (1, &[2]), (2, &[3])]);
        check(&[(1, &[6]), (2, &[6])]);
    }
}
