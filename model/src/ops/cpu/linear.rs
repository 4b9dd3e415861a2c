//! Provides linear layers and their adapters on f32 slices, forward and back: nothing is copied or transposed, and every product
//! adds to where its sum belongs.

use std::ops::Range;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::each_row;
use super::matmul::{Matrix, Store, Threads, product};
use super::tiles::{self, Quantised, Side};
use crate::element::{Element, for_element, lend};
use crate::simd::add_to;
use crate::{Gradients, Linear, Lora, Result, Weight};

/// Rows of the output that one task adds the bias to, or sums up for its gradient.
const BIAS_ROWS: usize = 32;

/// `scale x A^T` [N, rank] of a forward pass, which the gradient of B needs; empty without an adapter.
#[derive(Debug, Default)]
pub(crate) struct LowRank(Vec<f32>);

/// A dense matrix in 16 bits.
pub(super) struct Half<'a>(pub(super) &'a Tensor);

impl Quantised for Half<'_> {
    fn height(&self) -> usize {
        self.0.dims()[0]
    }

    fn width(&self) -> usize {
        self.0.dims()[1]
    }

    fn dequantize_rows(&self, rows: Range<usize>, _: Threads, out: &mut [f32]) -> Result<()> {
        let width = self.width();
        let mut widen = || {
            for_element!("widening", self.0.dtype(), E => {
                let lent = lend(self.0);
                let rows = &lent.numbers::<E>()?[rows.start * width..rows.end * width];
                for (out, value) in out.iter_mut().zip(rows) {
                    *out = value.widen();
                }
                Ok(())
            })
        };
        Ok(widen()?)
    }
}

/// A dense matrix in f32.
pub(super) struct Whole<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) width: usize,
}

impl Quantised for Whole<'_> {
    fn height(&self) -> usize {
        self.numbers.len() / self.width
    }

    fn width(&self) -> usize {
        self.width
    }

    fn dequantize_rows(&self, rows: Range<usize>, _: Threads, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self.numbers[rows.start * self.width..rows.end * self.width]);
        Ok(())
    }

    fn lend_rows(&self, rows: Range<usize>) -> Option<&[f32]> {
        self.numbers
            .get(rows.start * self.width..rows.end * self.width)
    }
}

/// `x W^T + bias + scale (x A^T) B^T` into `out`, or added to it.
///
/// # Shapes
/// x [N, in], out [N, out]
///
/// # Errors
/// Weights that are not on the CPU.
pub(super) fn apply(
    linear: &Linear,
    x: &[f32],
    out: &mut [f32],
    store: Store,
    side: Side,
) -> Result<LowRank> {
    let rows = x.len() / linear.in_features().max(1);
    weight_product(linear, side, x, rows, out, store)?;
    if let Some(bias) = linear.bias() {
        let bias = bias.tensor().to_dtype(DType::F32)?;
        let bias = lend(&bias);
        let bias = bias.numbers()?;
        out.par_chunks_mut(BIAS_ROWS * bias.len()).for_each(|rows| {
            for row in rows.chunks_exact_mut(bias.len()) {
                add_to(row, bias);
            }
        });
    }
    let Some(lora) = linear.lora() else {
        return Ok(LowRank::default());
    };
    let _part = tracing::trace_span!("adapters, forward").entered();
    let low = low_rank(lora, x, side)?;
    let b = lend(&lora.b);
    let rank = low.0.len() / rows.max(1);
    times(side, out, Store::Add, 1.0, &low.0, (b.numbers()?, rank));
    Ok(low)
}

/// `scale x A^T`.
fn low_rank(lora: &Lora, x: &[f32], side: Side) -> Result<LowRank> {
    let (rank, width) = lora.a.dims2()?;
    let rows = x.len() / width.max(1);
    let mut low = vec![0f32; rows * rank];
    let (a, scale) = (lend(&lora.a), lora.scale as f32);
    let right = (a.numbers()?, width);
    times(side, &mut low, Store::Replace, scale, x, right);
    Ok(LowRank(low))
}

/// `scale x W^T` of a matrix in f32.
///
/// # Shapes
/// x [rows, width], w [height, width], out [rows, height]
fn times(
    side: Side,
    out: &mut [f32],
    store: Store,
    scale: f32,
    x: &[f32],
    (w, width): (&[f32], usize),
) {
    if side == Side::EachRow {
        return each_row::product(out, store, scale, x, w, width);
    }
    let (rows, height) = (x.len() / width.max(1), w.len() / width.max(1));
    let right = Matrix::new(w, height, width, width).transpose();
    let left = Matrix::new(x, rows, width, width);
    product(out, height, store, scale, Threads::All, left, right);
}

/// A product of its own.
fn made(
    left: Matrix<'_>,
    right: Matrix<'_>,
    (rows, width): (usize, usize),
    scale: f32,
) -> Vec<f32> {
    let mut out = vec![0f32; rows * width];
    product(
        &mut out,
        width,
        Store::Replace,
        scale,
        Threads::All,
        left,
        right,
    );
    out
}

/// From dL/dy to the gradients of what is trained, and dL/dx into `to_x` or added to it, where it is wanted.
///
/// With l = scale x A^T (computed again where `low` is `None`): dB = dy^T l, dl = scale dy B, dA = dl^T x, dx = dy W + dl A;
/// dW = dy^T x, and the bias's gradient is the sum of dy's rows.
///
/// # Shapes
/// x and to_x [N, in], grad [N, out]
///
/// # Errors
/// Weights that are not on the CPU.
pub(super) fn pull_back(
    linear: &Linear,
    x: &[f32],
    low: Option<LowRank>,
    grad: &[f32],
    mut to_x: Option<(&mut [f32], Store)>,
    gradients: &mut Gradients,
) -> Result<()> {
    let (width, height) = (linear.in_features(), linear.out_features());
    let rows = x.len() / width.max(1);
    if let Some((to_x, store)) = &mut to_x {
        weight_product(linear, Side::Backward, grad, rows, to_x, *store)?;
    }
    let dy = Matrix::new(grad, rows, height, height);
    let right = Matrix::new(x, rows, width, width);
    if let Some((name, weight)) = linear.trained_weight() {
        let to_weight = made(dy.transpose(), right, (height, width), 1.0);
        let shape = weight.shape();
        gradients.add(&name, &Tensor::from_vec(to_weight, shape, weight.device())?)?;
    }
    if let Some((name, bias)) = linear.trained_bias() {
        let sum = Tensor::from_vec(sum_of_rows(grad, height), height, bias.device())?;
        gradients.add(&name, &sum)?;
    }
    let Some(lora) = linear.lora() else {
        return Ok(());
    };
    let _part = tracing::trace_span!("adapters, backward").entered();
    let low = match low {
        Some(low) => low,
        None => low_rank(lora, x, Side::Forward)?,
    };
    let rank = lora.a.dims2()?.0;
    let (a, b) = (lend(&lora.a), lend(&lora.b));
    let a = Matrix::new(a.numbers()?, rank, width, width);
    let b = Matrix::new(b.numbers()?, height, rank, rank);
    let low = Matrix::new(&low.0, rows, rank, rank);
    let to_b = made(dy.transpose(), low, (height, rank), 1.0);
    let to_low = made(dy, b, (rows, rank), lora.scale as f32);
    let to_low = Matrix::new(&to_low, rows, rank, rank);
    let to_a = made(to_low.transpose(), right, (rank, width), 1.0);
    if let Some((to_x, _)) = to_x {
        product(to_x, width, Store::Add, 1.0, Threads::All, to_low, a);
    }
    let [(a_name, a), (b_name, b)] = lora.parameters(linear.prefix());
    gradients.add(&a_name, &Tensor::from_vec(to_a, a.shape(), a.device())?)?;
    gradients.add(&b_name, &Tensor::from_vec(to_b, b.shape(), b.device())?)
}

/// The sum of rows of `width`, in an order that does not depend on the number of threads.
fn sum_of_rows(rows: &[f32], width: usize) -> Vec<f32> {
    let part = |rows: &[f32]| {
        let mut sum = vec![0f32; width];
        let rows = rows.chunks_exact(width);
        rows.for_each(|row| add_to(&mut sum, row));
        sum
    };
    let parts = rows.par_chunks(BIAS_ROWS * width).map(part);
    let parts: Vec<Vec<f32>> = parts.collect();
    part(&parts.concat())
}

/// x W^T or dy W.
fn weight_product(
    linear: &Linear,
    side: Side,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    store: Store,
) -> Result<()> {
    let _part = match side {
        Side::Forward | Side::EachRow => tracing::trace_span!("frozen weights, forward"),
        Side::Backward => tracing::trace_span!("frozen weights, backward"),
    }
    .entered();
    let weight = match linear.weight() {
        Weight::Nf4(weight) => {
            return tiles::multiply(weight.as_ref(), side, x, rows, out, store);
        }
        Weight::Packed(weight) => return tiles::multiply(weight, side, x, rows, out, store),
        Weight::Dense(weight) if weight.dtype() != DType::F32 => {
            return tiles::multiply(&Half(weight), side, x, rows, out, store);
        }
        Weight::Dense(weight) => weight,
        Weight::Trainable(weight) => weight.as_tensor(),
    };
    let (width, height) = (linear.in_features(), linear.out_features());
    let weight = lend(weight);
    let numbers = weight.numbers()?;
    let weight = Matrix::new(numbers, height, width, width);
    let (right, inner, outer) = match side {
        Side::EachRow => {
            let whole = Whole { numbers, width };
            return tiles::multiply(&whole, side, x, rows, out, store);
        }
        Side::Forward => (weight.transpose(), width, height),
        Side::Backward => (weight, height, width),
    };
    let x = Matrix::new(x, rows, inner, inner);
    product(out, outer, store, 1.0, Threads::All, x, right);
    Ok(())
}
