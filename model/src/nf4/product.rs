//! Provides the product with a frozen NF4 matrix as a candle op: a tile of rows is dequantised, multiplied and discarded.
//!
//! Only one tile of f32 weights exists at a time, and both directions share it: y = x W^T fills columns of y, dX = dY W sums
//! over tiles. The gradient of W does not exist.

use super::Nf4Matrix;
use crate::frozen::Side;
use crate::matmul::{Matrix, Store, Threads, product};
use crate::{Error, Result};
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Result as CandleResult, Shape, Tensor,
};
use distill_kernels::device;
use half::{bf16, f16};
use rayon::prelude::*;
use std::cell::Cell;
use std::sync::Arc;

/// Elements of the tile of dequantised weights: 1 MiB as f32, about what a core's cache holds.
const TILE_ELEMENTS: usize = 1 << 18;
/// Bounds on the tile's rows. Wide matrices get 256 rows all the same: the backward product reads and writes all of dX once
/// a tile, and with 64 rows that costs a tenth of its time.
const TILE_ROWS: std::ops::RangeInclusive<usize> = 256..=1024;
/// Activations one task widens or narrows at a time.
const CONVERT_ELEMENTS: usize = 1 << 14;

/// y = x W^T for a frozen NF4 matrix W. The product is computed in f32 and rounded to x's type.
///
/// # Shapes
/// x [N, in], weight [out, in] -> [N, out]
///
/// # Errors
/// When x has another width or a type that is not f32, bf16 or f16.
pub(crate) fn forward(x: &Tensor, weight: &Arc<Nf4Matrix>) -> Result<Tensor> {
    let op = Product {
        weight: Arc::clone(weight),
        side: Side::Forward,
        tile_rows: tile_rows(weight.columns),
    };
    x.contiguous()?.apply_op1(op).map_err(Error::from)
}

fn tile_rows(columns: usize) -> usize {
    (TILE_ELEMENTS / columns.max(1)).clamp(*TILE_ROWS.start(), *TILE_ROWS.end())
}

pub(super) struct Product {
    pub weight: Arc<Nf4Matrix>,
    pub side: Side,
    pub tile_rows: usize,
}

impl Product {
    /// Checks the input and returns (rows of the input, width of the output).
    fn plan(&self, x: &Layout) -> CandleResult<(usize, usize)> {
        let (rows, width) = x.shape().dims2()?;
        let (expected, out) = match self.side {
            Side::Forward => (self.weight.columns, self.weight.rows),
            Side::Backward => (self.weight.rows, self.weight.columns),
        };
        if width != expected {
            candle_core::bail!(
                "NF4 linear: the input is {width} wide, the weight takes {expected}"
            );
        }
        Ok((rows, out))
    }

    /// x [N, width] -> [N, out].
    fn multiply(&self, x: &[f32], rows: usize, out_width: usize) -> CandleResult<Vec<f32>> {
        let mut out = vec![0f32; rows * out_width];
        multiply_tiles(
            &self.weight,
            self.side,
            self.tile_rows,
            x,
            rows,
            &mut out,
            Store::Replace,
        )
        .map_err(candle_core::Error::wrap)?;
        Ok(out)
    }
}

/// x W^T or dY W of a frozen NF4 matrix on plain slices, into `out` or added to it.
///
/// # Shapes
/// W [height, columns]; forward: x [rows, columns], out [rows, height]; backward: x [rows, height], out [rows, columns]
///
/// # Errors
/// Never for slices of these sizes.
///
/// # Panics
/// When a slice is too short: a mistake in the caller.
pub(crate) fn multiply(
    weight: &Nf4Matrix,
    side: Side,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    store: Store,
) -> Result<()> {
    multiply_tiles(weight, side, tile_rows(weight.columns), x, rows, out, store)
}

thread_local! {
    /// The tile, kept from product to product: fresh memory costs the system a visit for every page.
    static TILE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

fn multiply_tiles(
    weight: &Nf4Matrix,
    side: Side,
    tile_rows: usize,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    store: Store,
) -> Result<()> {
    let (height, columns) = (weight.rows, weight.columns);
    if rows == 0 {
        return Ok(());
    }
    let mut buffer = TILE.take();
    if buffer.len() < tile_rows.min(height) * columns {
        buffer.resize(tile_rows.min(height) * columns, 0.0);
    }
    for first in (0..height).step_by(tile_rows) {
        let tile_height = tile_rows.min(height - first);
        let tile = &mut buffer[..tile_height * columns];
        weight.dequantize_rows(first..first + tile_height, tile)?;
        let tile = Matrix::new(tile, tile_height, columns, columns);
        match side {
            Side::Forward => {
                let x = Matrix::new(x, rows, columns, columns);
                let out = &mut out[first..];
                product(out, height, store, 1.0, Threads::All, x, tile.transpose());
            }
            Side::Backward => {
                let store = if first > 0 { Store::Add } else { store };
                let x = Matrix::new(&x[first..], rows, tile_height, height);
                product(out, columns, store, 1.0, Threads::All, x, tile);
            }
        }
    }
    TILE.set(buffer);
    Ok(())
}

fn convert<S: Copy + Sync, T: Send>(values: &[S], to: fn(S) -> T) -> Vec<T> {
    values
        .par_iter()
        .with_min_len(CONVERT_ELEMENTS)
        .map(|value| to(*value))
        .collect()
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "nf4-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (rows, out_width) = self.plan(layout)?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("NF4 linear: the input must be contiguous");
        };
        let y = match x {
            CpuStorage::F32(x) => {
                CpuStorage::F32(self.multiply(&x[start..end], rows, out_width)?)
            }
            CpuStorage::BF16(x) => {
                let x = convert(&x[start..end], bf16::to_f32);
                let y = self.multiply(&x, rows, out_width)?;
                CpuStorage::BF16(convert(&y, bf16::from_f32))
            }
            CpuStorage::F16(x) => {
                let x = convert(&x[start..end], f16::to_f32);
                let y = self.multiply(&x, rows, out_width)?;
                CpuStorage::F16(convert(&y, f16::from_f32))
            }
            other => candle_core::bail!(
                "NF4 linear: activations must be f32, bf16 or f16, got {:?}",
                other.dtype()
            ),
        };
        Ok((y, (rows, out_width).into()))
    }

    /// The whole matrix is unpacked into scratch, in x's type, which lasts for the one product.
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        let (rows, out_width) = self.plan(layout)?;
        let weight = self.weight.unpack_on_card(x.device(), x.dtype())?;
        let (storage, weight_layout) = weight.storage_and_layout();
        let (right, inner) = match self.side {
            Side::Forward => (weight_layout.transpose(0, 1)?, self.weight.columns),
            Side::Backward => (weight_layout.clone(), self.weight.rows),
        };
        let weight = device::storage(&storage)?;
        let y = x.matmul(weight, (1, rows, out_width, inner), layout, &right)?;
        Ok((y, (rows, out_width).into()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if self.side == Side::Backward {
            candle_core::bail!("NF4 linear: second derivatives are not supported");
        }
        let op = Self {
            weight: Arc::clone(&self.weight),
            side: Side::Backward,
            tile_rows: self.tile_rows,
        };
        grad.contiguous()?.apply_op1_no_bwd(&op).map(Some)
    }
}
