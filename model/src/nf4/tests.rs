//! Provides the tests of NF4 and FP4 against matrices that bitsandbytes quantised, and of hostile quantisation states.
//! The fixtures and their recipe: model/tests/fixtures/{nf4,bnb}.safetensors, tests/fixtures/make_bnb.py.

use super::*;
use crate::Weights;
use candle_core::Device;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::Path;

const SINGLE: [&str; 4] = ["single_f32", "single_bf16", "single_f16", "odd_bf16"];
const DOUBLE: [&str; 3] = ["double_f32", "double_bf16", "ragged_bf16"];

/// FP4, other block sizes, other storage types: (name, type, block size, double quantised).
const OTHERS: [(&str, QuantType, usize, bool); 10] = [
    ("fp4_f32", QuantType::Fp4, 64, false),
    ("fp4_f16", QuantType::Fp4, 128, false),
    ("fp4_odd", QuantType::Fp4, 32, false),
    ("fp4_double", QuantType::Fp4, 64, true),
    ("nf4_32", QuantType::Nf4, 32, true),
    ("nf4_128", QuantType::Nf4, 128, true),
    ("nf4_512", QuantType::Nf4, 512, false),
    ("nf4_4096", QuantType::Nf4, 4096, false),
    ("stored_bf16", QuantType::Nf4, 64, true),
    ("stored_f32", QuantType::Fp4, 64, false),
];

/// Every case of both files, with how it was quantised.
fn cases() -> Vec<(&'static str, QuantOptions)> {
    let nf4 = |double_quant| {
        move |name: &&'static str| {
            let options = QuantOptions {
                double_quant,
                ..QuantOptions::default()
            };
            (*name, options)
        }
    };
    let others = OTHERS
        .iter()
        .map(|(name, quant_type, block_size, double_quant)| {
            let options = QuantOptions {
                quant_type: *quant_type,
                block_size: *block_size,
                double_quant: *double_quant,
            };
            (*name, options)
        });
    let single = SINGLE.iter().map(nf4(false));
    single
        .chain(DOUBLE.iter().map(nf4(true)))
        .chain(others)
        .collect()
}

/// The file that holds the case.
pub(super) fn fixture(case: &str) -> Weights {
    let other = OTHERS.iter().any(|(name, ..)| *name == case);
    let file = if other { "bnb" } else { "nf4" };
    let path = format!(
        "{}/tests/fixtures/{file}.safetensors",
        env!("CARGO_MANIFEST_DIR")
    );
    Weights::open_file(Path::new(&path)).unwrap()
}

fn values(weights: &Weights, name: &str) -> Vec<f32> {
    let tensor = weights.tensor(name, DType::F32, &Device::Cpu).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn dequantize(matrix: &Nf4Matrix) -> Vec<f32> {
    let tensor = matrix.dequantize(DType::F32, &Device::Cpu).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The fixture's source, quantised here.
fn quantized(weights: &Weights, case: &str, options: QuantOptions) -> Nf4Matrix {
    let name = format!("{case}.source");
    let (dtype, shape, _) = weights.raw(&name).unwrap();
    let rounding = match dtype {
        Dtype::BF16 => Rounding::BF16,
        Dtype::F16 => Rounding::F16,
        _ => Rounding::F32,
    };
    let source = values(weights, &name);
    Nf4Matrix::quantize_as(options, &source, shape[0], shape[1], rounding).unwrap()
}

/// Equality without printing thousands of numbers. A zero block's sign of zero is no property of the format.
fn assert_same(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let difference = actual.iter().zip(expected).position(|(a, e)| a != e);
    if let Some(i) = difference {
        panic!(
            "{what}: element {i} is {}, expected {}",
            actual[i], expected[i]
        );
    }
}

#[test]
fn stored_matrices_dequantise_bit_for_bit_as_bitsandbytes_does() {
    for (case, options) in cases() {
        let weights = fixture(case);
        let matrix = Nf4Matrix::read(&weights, &format!("{case}.weight")).unwrap();
        assert_eq!(matrix.is_double_quantized(), options.double_quant);
        assert_eq!(
            (matrix.quant_type(), matrix.block_size()),
            (options.quant_type, options.block_size)
        );
        let scales = values(&weights, &format!("{case}.absmax_f32"));
        for (block, expected) in scales.iter().enumerate() {
            let actual = matrix.scale(block);
            assert_eq!(actual.to_bits(), expected.to_bits(), "{case} scale {block}");
        }
        let expected = values(&weights, &format!("{case}.dequantized"));
        assert_same(&dequantize(&matrix), &expected, case);
    }
}

#[test]
fn quantising_gives_the_codes_of_bitsandbytes() {
    for (case, options) in cases() {
        let weights = fixture(case);
        let matrix = quantized(&weights, case, options);
        let (_, _, codes) = weights.raw(&format!("{case}.weight")).unwrap();
        assert_eq!(matrix.codes, codes, "{case}");
        match &matrix.scales {
            Scales::Plain(absmax) => {
                let expected = values(&weights, &format!("{case}.weight.absmax"));
                assert_same(absmax, &expected, case);
            }
            Scales::Nested(nested) => {
                let map = values(&weights, &format!("{case}.weight.nested_quant_map"));
                assert_same(&nested.map, &map, case);
                let (_, _, nearest) = weights.raw(&format!("{case}.nearest")).unwrap();
                assert_eq!(nested.codes, nearest, "{case}");
                let stored = Nf4Matrix::read(&weights, &format!("{case}.weight")).unwrap();
                assert_close_to_cpu_kernel(nested, &stored);
            }
        }
    }
}

/// The CPU kernel of bitsandbytes looks scales up in a table of 65536 steps and may take the entry beside the nearest one.
fn assert_close_to_cpu_kernel(nested: &NestedScales, stored: &Nf4Matrix) {
    let Scales::Nested(expected) = &stored.scales else {
        panic!("{stored:?}");
    };
    for (block, (code, expected_code)) in nested.codes.iter().zip(&expected.codes).enumerate() {
        assert!(code.abs_diff(*expected_code) <= 1, "block {block}");
        if code == expected_code {
            // The offset is torch's f32 mean there and the exact mean here: a few units in the last place.
            let (scale, expected) = (nested.scale(block), expected.scale(block));
            assert!(
                (scale - expected).abs() <= 4.0 * f32::EPSILON * expected,
                "block {block}"
            );
        }
    }
}

#[test]
fn dequantising_rows_is_dequantising_the_whole_for_every_range() {
    // 33 and 47 columns: rows begin inside bytes and inside blocks.
    for case in ["odd_bf16", "single_bf16", "nf4_32", "fp4_double"] {
        let weights = fixture(case);
        let matrix = Nf4Matrix::read(&weights, &format!("{case}.weight")).unwrap();
        let whole = dequantize(&matrix);
        for first in 0..matrix.rows() {
            for end in first..=matrix.rows() {
                let mut rows = vec![f32::NAN; (end - first) * matrix.columns()];
                matrix.dequantize_rows(first..end, &mut rows).unwrap();
                assert_eq!(
                    rows,
                    whole[first * matrix.columns()..end * matrix.columns()]
                );
            }
        }
        let mut short = vec![0.0; matrix.columns()];
        let outside = matrix.rows()..matrix.rows() + 1;
        assert!(matrix.dequantize_rows(outside, &mut short).is_err());
        assert!(matrix.dequantize_rows(0..2, &mut short).is_err());
    }
}

#[test]
fn dequantising_across_tasks_equals_the_definition() {
    // More elements than one task takes, and a width that no block or task size divides.
    let (rows, columns) = (61, 1001);
    let source: Vec<f32> = (0..rows * columns)
        .map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0)
        .collect();
    let matrix = Nf4Matrix::quantize(&source, rows, columns, true, Rounding::F32).unwrap();
    let expected: Vec<f32> = (0..rows * columns)
        .map(|i| {
            let byte = matrix.codes[i / 2];
            let code = if i % 2 == 0 { byte >> 4 } else { byte & 0xf };
            QuantType::Nf4.table()[usize::from(code)] * matrix.scale(i / BLOCK_SIZE)
        })
        .collect();
    assert_same(&dequantize(&matrix), &expected, "61x1001");
}

#[test]
fn rounding_can_be_switched_off() {
    let weights = fixture("single_bf16");
    let matrix = Nf4Matrix::read(&weights, "single_bf16.weight").unwrap();
    let rounded = dequantize(&matrix);
    let exact = dequantize(&matrix.with_rounding(Rounding::F32));
    assert_ne!(rounded, exact);
    for (rounded, exact) in rounded.iter().zip(exact) {
        assert_eq!(*rounded, half::bf16::from_f32(exact).to_f32());
    }
}

#[test]
fn values_that_cannot_be_quantised_are_refused_with_their_place() {
    let mut values = vec![0.5; 6];
    values[4] = f32::INFINITY;
    let error = Nf4Matrix::quantize(&values, 2, 3, true, Rounding::F32).unwrap_err();
    assert!(error.to_string().contains("row 1, column 1"), "{error}");
    assert!(Nf4Matrix::quantize(&values, 2, 2, true, Rounding::F32).is_err());
    assert!(Nf4Matrix::quantize(&[], 0, 3, true, Rounding::F32).is_err());
    assert!(Nf4Matrix::quantize(&[], usize::MAX, 3, true, Rounding::F32).is_err());
    for block_size in [0, 16, 48, 65, 8192] {
        let options = QuantOptions {
            block_size,
            ..QuantOptions::default()
        };
        let error = Nf4Matrix::quantize_as(options, &[1.0; 6], 2, 3, Rounding::F32).unwrap_err();
        assert!(error.to_string().contains("block_size"), "{error}");
    }
}

/// A copy of one fixture case with some tensors replaced or, when empty, removed.
fn tampered(case: &str, changes: &[(&str, &[u8])]) -> crate::Result<Nf4Matrix> {
    let weights = fixture(case);
    let prefix = format!("{case}.");
    let names = weights.names().filter(|name| name.starts_with(&prefix));
    let stored: Vec<_> = names
        .map(|name| (name, weights.raw(name).unwrap()))
        .collect();
    let mut tensors = Vec::new();
    for (name, (dtype, shape, bytes)) in &stored {
        let (name, dtype) = (*name, *dtype);
        let change = changes.iter().find(|(suffix, _)| name.ends_with(suffix));
        match change {
            Some((_, [])) => {}
            Some((_, new)) => {
                let shape = vec![new.len() / (dtype.bitsize() / 8)];
                tensors.push((name, TensorView::new(dtype, shape, new).unwrap()));
            }
            None => tensors.push((name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap())),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tampered.safetensors");
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    Nf4Matrix::read(
        &Weights::open_file(&path).unwrap(),
        &format!("{case}.weight"),
    )
}

#[test]
fn hostile_quantisation_states_are_refused_by_name() {
    const STATE: &str = "quant_state.bitsandbytes__nf4";
    let state = |edit: &str, with: &str| {
        let text = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 160], "nested_blocksize": 256, "nested_offset": 0.2}"#;
        assert!(text.contains(edit));
        text.replace(edit, with)
    };
    assert!(tampered("double_bf16", &[(STATE, state("64", "64").as_bytes())]).is_ok());
    for (edit, with) in [
        (r#""nf4""#, r#""fp4""#),
        ("64, \"dtype", "0, \"dtype"),
        ("64, \"dtype", "63, \"dtype"),
        ("64, \"dtype", "8192, \"dtype"),
        ("bfloat16", "int8"),
        ("[64, 160]", "[64]"),
        ("[64, 160]", "[0, 160]"),
        ("[64, 160]", "[64, 161]"),
        ("[64, 160]", "[4294967296, 4294967296]"),
        ("256", "0"),
        ("256", "1"),
        ("256", "18446744073709551615"),
        ("0.2", "1e300"),
        ("0.2", "NaN"),
        ("{", ""),
    ] {
        let error = tampered("double_bf16", &[(STATE, state(edit, with).as_bytes())])
            .expect_err(&format!("{edit} -> {with}"))
            .to_string();
        assert!(error.contains("double_bf16.weight"), "{error}");
    }
}

#[test]
fn a_state_that_says_another_type_than_its_name_is_refused() {
    const STATE: &str = "quant_state.bitsandbytes__fp4";
    let state = |kind: &str| {
        format!(
            r#"{{"quant_type": "{kind}", "blocksize": 64, "dtype": "float32", "shape": [10, 64]}}"#
        )
    };
    assert!(tampered("fp4_f32", &[(STATE, state("fp4").as_bytes())]).is_ok());
    let error = tampered("fp4_f32", &[(STATE, state("nf4").as_bytes())]).unwrap_err();
    assert!(error.to_string().contains("is not fp4"), "{error}");
    let nf4: Vec<u8> = QuantType::Nf4
        .table()
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let error = tampered("fp4_f32", &[("quant_map", &nf4)]).unwrap_err();
    assert!(error.to_string().contains("table of fp4"), "{error}");
    // Codes in another storage type are counted in bytes.
    let error = tampered("stored_bf16", &[("stored_bf16.weight", b"1234")]).unwrap_err();
    assert!(error.to_string().contains("4 bytes of codes"), "{error}");
}

#[test]
fn what_is_written_reads_back_as_itself() {
    for (case, options) in cases() {
        let weights = fixture(case);
        let matrix = quantized(&weights, case, options);
        let stored = matrix.stored("w.weight");
        let views = stored.iter().map(|t| {
            let view = TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap();
            (t.name.as_str(), view)
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let weights = Weights::open_file(&path).unwrap();
        assert!(Nf4Matrix::any_stored(&weights) && Nf4Matrix::is_stored(&weights, "w.weight"));
        let read = Nf4Matrix::read(&weights, "w.weight").unwrap();
        assert_eq!(read.codes, matrix.codes, "{case}");
        assert_same(&dequantize(&read), &dequantize(&matrix), case);
    }
}

/// bitsandbytes packs lm_head too where it is not told to skip it.
#[test]
fn a_head_in_four_bits_is_held_densely() {
    let weights = fixture("double_bf16");
    let load = |shape: &[usize]| {
        let options = crate::LoadOptions::reference();
        crate::layer::load_parameter(&weights, "double_bf16.weight", shape, &options)
    };
    let head = load(&[64, 160]).unwrap();
    let head = head.tensor().flatten_all().unwrap();
    let expected = values(&weights, "double_bf16.dequantized");
    assert_same(&head.to_vec1().unwrap(), &expected, "head");
    let message = load(&[160, 64]).unwrap_err().to_string();
    assert!(message.contains("double_bf16.weight"), "{message}");
}

#[test]
fn missing_or_short_parts_are_refused_by_name() {
    for (part, bytes) in [
        ("weight.absmax", &b""[..]),
        ("weight.absmax", &b"12"[..]),
        ("weight.nested_absmax", b""),
        ("weight.nested_absmax", b"\0\0\x80\x7f"), // infinity
        ("weight.nested_quant_map", b""),
        ("weight.nested_quant_map", b"1234"),
        ("weight.quant_map", b""),
        ("weight.quant_map", &[0; 64]),
        ("double_bf16.weight", b"12"),
    ] {
        let error = tampered("double_bf16", &[(part, bytes)]).expect_err(part);
        let name = part.trim_start_matches("double_bf16.");
        assert!(error.to_string().contains(name), "{part}: {error}");
    }
}
