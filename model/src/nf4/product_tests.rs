//! Provides the tests of the tiled product with a 4-bit matrix against the dense product.

use candle_core::{DType, Device, Tensor};

use super::Nf4Matrix;
use super::tests::fixture;
use crate::ops::cpu::{Side, Store, multiply, multiply_in_tiles};

/// x [n, width] that depends on nothing but its size.
fn input(n: usize, width: usize) -> Tensor {
    let values: Vec<f32> = (0..n * width)
        .map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0)
        .collect();
    Tensor::from_vec(values, (n, width), &Device::Cpu).unwrap()
}

#[test]
fn tiles_of_every_height_give_the_dense_product_forward_and_backward() {
    for (case, tile_rows) in [1, 7, 64, 130, 131, 132, 1024]
        .map(|tile_rows| ("ragged_bf16", tile_rows))
        .into_iter()
        .chain([
            ("fp4_odd", 3),
            ("fp4_double", 7),
            ("nf4_32", 4),
            ("nf4_4096", 16),
        ])
    {
        let weights = fixture(case);
        let matrix = Nf4Matrix::read(&weights, &format!("{case}.weight")).unwrap();
        let dense = matrix.dequantize(DType::F32, &Device::Cpu).unwrap();
        let (x, grad) = (input(5, matrix.columns()), input(5, matrix.rows()));
        let y = x.matmul(&dense.t().unwrap()).unwrap();
        let dx = grad.matmul(&dense).unwrap();
        let run = |side, x: &Tensor, shape: (usize, usize)| {
            let x = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let mut out = vec![0f32; shape.0 * shape.1];
            multiply_in_tiles(&matrix, tile_rows, side, &x, &mut out).unwrap();
            Tensor::from_vec(out, shape, &Device::Cpu).unwrap()
        };
        let forward = run(Side::Forward, &x, (5, matrix.rows()));
        let each_row = run(Side::EachRow, &x, (5, matrix.rows()));
        let backward = run(Side::Backward, &grad, (5, matrix.columns()));
        for (name, actual, expected) in [
            ("y", forward, &y),
            ("y by rows", each_row, &y),
            ("dx", backward, &dx),
        ] {
            let error = (actual - expected).unwrap().abs().unwrap();
            let error = error.max_all().unwrap().to_scalar::<f32>().unwrap();
            // f32 sums of 250 products of size 0.1 in another order.
            assert!(
                error < 1e-5,
                "{case}: {name} with tiles of {tile_rows}: {error}"
            );
        }
    }
}

#[test]
fn a_product_is_the_same_bit_for_bit_whatever_the_number_of_threads() {
    let weights = fixture("ragged_bf16");
    let matrix = Nf4Matrix::read(&weights, "ragged_bf16.weight").unwrap();
    let rows = 70;
    let run = |threads, side, x: &Tensor, out_width| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let x = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut out: Vec<f32> = (0..rows * out_width).map(|i| (i as f32).sin()).collect();
        let sum = || multiply(&matrix, side, &x, rows, &mut out, Store::Add);
        pool.build().unwrap().install(sum).unwrap();
        out
    };
    let forward = (Side::Forward, input(rows, matrix.columns()), matrix.rows());
    let backward = (Side::Backward, input(rows, matrix.rows()), matrix.columns());
    let each_row = (Side::EachRow, forward.1.clone(), forward.2);
    for (side, x, out_width) in [forward, each_row, backward] {
        let alone = run(1, side, &x, out_width);
        assert_eq!(alone, run(3, side, &x, out_width), "{side:?}");
        let dense = matrix.dequantize(DType::F32, &Device::Cpu).unwrap();
        let right = match side {
            Side::Forward | Side::EachRow => dense.t().unwrap(),
            Side::Backward => dense,
        };
        let product = x.matmul(&right).unwrap().flatten_all().unwrap();
        for (i, (sum, product)) in alone
            .iter()
            .zip(product.to_vec1::<f32>().unwrap())
            .enumerate()
        {
            // f32 sums of 250 products of size 0.1 in another order.
            assert!(
                (sum - (i as f32).sin() - product).abs() < 1e-5,
                "{side:?}, {i}"
            );
        }
    }
}
