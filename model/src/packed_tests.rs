use std::path::Path;

use super::*;

/// Two blocks of the widest type a row.
const COLUMNS: usize = 512;

fn values(rows: usize, columns: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * columns)
        .map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0)
        .collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

/// A matrix in strips of `strip_rows`, and what candle itself makes of its blocks.
pub(crate) fn matrix(
    dtype: GgmlDType,
    rows: usize,
    columns: usize,
    strip_rows: usize,
) -> (PackedMatrix, Tensor) {
    let whole = QTensor::quantize(&values(rows, columns), dtype).unwrap();
    let bytes = whole.data().unwrap();
    let row_bytes = row_bytes(dtype, columns).unwrap();
    let read = |rows: Range<usize>, out: &mut [u8]| {
        out.copy_from_slice(&bytes[rows.start * row_bytes..rows.end * row_bytes]);
        Ok(())
    };
    let shape = (rows, columns);
    let packed = PackedMatrix::read_strips(dtype, shape, strip_rows, &Device::Cpu, read).unwrap();
    (packed, whole.dequantize(&Device::Cpu).unwrap())
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn rows_are_those_of_the_whole_matrix_in_every_type() {
    for (dtype, name, _) in BLOCK_TYPES {
        for strip_rows in [1, 3, 100] {
            let (packed, dense) = matrix(dtype, 10, COLUMNS, strip_rows);
            assert_eq!(packed.type_name(), name);
            assert_eq!(packed.bytes(), 10 * row_bytes(dtype, COLUMNS).unwrap());
            let whole = packed.dequantize(DType::F32, &Device::Cpu).unwrap();
            assert_eq!(flat(&whole), flat(&dense), "{name}");
            for rows in [0..10, 2..3, 5..9, 4..4] {
                let mut out = vec![f32::NAN; rows.len() * COLUMNS];
                packed.dequantize_rows(rows.clone(), &mut out).unwrap();
                let expected = dense.narrow(0, rows.start, rows.len()).unwrap();
                assert_eq!(out, flat(&expected), "{name} {rows:?} of {strip_rows}");
            }
        }
    }
}

#[test]
fn rows_outside_are_refused() {
    let (packed, _) = matrix(GgmlDType::Q8_0, 10, 64, 4);
    let mut out = vec![0f32; 2 * 64];
    assert!(packed.dequantize_rows(9..11, &mut out).is_err());
    assert!(packed.dequantize_rows(0..1, &mut out).is_err());
    assert!(packed.narrow(11).is_err() && packed.narrow(0).is_err());
    let narrow = packed.narrow(5).unwrap();
    assert!(narrow.dequantize_rows(4..6, &mut out).is_err());
    let ids = Tensor::new(&[3u32, 10], &Device::Cpu).unwrap();
    assert!(packed.lookup(&ids).is_err());
}

#[test]
fn rows_that_are_no_whole_blocks_are_refused() {
    let read = |_: Range<usize>, _: &mut [u8]| Ok(());
    for (dtype, rows, columns) in [
        (GgmlDType::Q8_0, 4, 33),
        (GgmlDType::Q4K, 4, 128),
        (GgmlDType::F16, 0, 32),
        (GgmlDType::F16, 4, 0),
    ] {
        let found = PackedMatrix::read(dtype, (rows, columns), &Device::Cpu, read);
        assert!(found.is_err(), "{dtype:?} [{rows}, {columns}]");
    }
}

#[test]
fn looked_up_rows_come_in_the_order_of_the_ids() {
    let (packed, dense) = matrix(GgmlDType::Q5_0, 10, 64, 4);
    let ids = Tensor::new(&[9u32, 0, 4, 4, 3], &Device::Cpu).unwrap();
    let expected = dense.index_select(&ids, 0).unwrap();
    assert_eq!(flat(&packed.lookup(&ids).unwrap()), flat(&expected));
}

#[test]
fn the_product_is_that_of_the_dense_matrix_by_tiles_and_by_strips() {
    // More rows than a tile of 1024 has.
    let (packed, dense) = matrix(GgmlDType::Q4_1, 1100, 64, 300);
    let narrow = packed.narrow(700).unwrap();
    let x = values(5, 64);
    for (packed, rows) in [(packed, 1100), (narrow, 700)] {
        let expected = dense.narrow(0, 0, rows).unwrap().t().unwrap();
        let expected = x.matmul(&expected).unwrap();
        for (way, y) in [
            ("tiles", packed.product(&x).unwrap()),
            ("strips", packed.product_by_strips(&x).unwrap()),
        ] {
            assert_eq!(y.dims(), [5, rows], "{way}");
            let difference = (y - &expected).unwrap().abs().unwrap();
            let difference: f32 = difference.max_all().unwrap().to_scalar().unwrap();
            // f32 sums of 64 products of order 1 in another order.
            assert!(difference < 1e-5, "{way}: {difference}");
        }
    }
}

/// Blocks and values that llama.cpp's `gguf` package gives (tests/fixtures/make_gguf.py).
#[test]
fn blocks_mean_what_the_gguf_package_says() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/blocks.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    assert_eq!(tensors.len(), 2 * BLOCK_TYPES.len());
    for (dtype, name, _) in BLOCK_TYPES {
        let blocks = &tensors[&format!("{name}.blocks")];
        let blocks = blocks.to_vec2::<u8>().unwrap();
        let expected = &tensors[&format!("{name}.values")];
        let shape = expected.dims2().unwrap();
        let packed = PackedMatrix::read(dtype, shape, &Device::Cpu, |rows, out| {
            out.copy_from_slice(&blocks[rows].concat());
            Ok(())
        });
        let found = packed.unwrap().dequantize(DType::F32, &Device::Cpu);
        let bits =
            |tensor: &Tensor| -> Vec<u32> { flat(tensor).into_iter().map(f32::to_bits).collect() };
        assert_eq!(bits(&found.unwrap()), bits(expected), "{name}");
    }
}
