//! Provides the product with a frozen quantised matrix as a candle op: a tile of rows is dequantised, multiplied and discarded.
//!
//! y = x W^T: every core dequantises a tile of its own and fills its columns of y, so cores wait for each other once a product.
//! dX = dY W sums over tiles: there is one at a time, and all cores share its work. The gradient of W does not exist.

use crate::frozen::Side;
use crate::matmul::{Matrix, Store, Threads, product};
use crate::{Error, Result};
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, Layout, Result as CandleResult, Shape,
    Tensor,
};
use distill_kernels::device;
use half::{bf16, f16};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;
use std::thread::LocalKey;

/// Elements of the tile of dequantised weights: 1 MiB as f32, about what a core's cache holds.
const TILE_ELEMENTS: usize = 1 << 18;
/// Bounds on the tile's rows. Wide matrices get 256 rows all the same: the backward product reads and writes all of dX once
/// a tile, and with 64 rows that costs a tenth of its time.
const TILE_ROWS: std::ops::RangeInclusive<usize> = 256..=1024;
/// Tiles of a forward product at least, so that every core gets some, while none has fewer rows than `TILE_ROWS_MIN`. The number
/// of cores is not asked: a result must not depend on it.
const TILES_MIN: usize = 16;
/// See `TILES_MIN`; a tile of fewer rows costs more in preparing x for it than it gains.
const TILE_ROWS_MIN: usize = 64;
/// Activations one task widens or narrows at a time.
const CONVERT_ELEMENTS: usize = 1 << 14;

/// A frozen matrix [height, width] whose rows are dequantised when they are needed; a clone shares them.
pub(crate) trait Quantised: Clone + Send + Sync + 'static {
    /// What its product is called in errors.
    const PRODUCT: &'static str;

    /// Rows, a linear layer's output features.
    fn height(&self) -> usize;

    /// Columns, a linear layer's input features.
    fn width(&self) -> usize;

    /// Dequantises rows into `out` [rows.len(), width].
    fn dequantize_rows(&self, rows: Range<usize>, threads: Threads, out: &mut [f32]) -> Result<()>;

    /// The whole matrix as a dense tensor on a card.
    fn unpack_on_card(&self, card: &CudaDevice, dtype: DType) -> CandleResult<Tensor>;
}

/// y = x W^T for a frozen quantised matrix W. The product is computed in f32 and rounded to x's type.
///
/// # Shapes
/// x [N, in], weight [out, in] -> [N, out]
///
/// # Errors
/// When x has another width or a type that is not f32, bf16 or f16.
pub(crate) fn forward<W: Quantised>(x: &Tensor, weight: &W) -> Result<Tensor> {
    let op = Product {
        weight: weight.clone(),
        side: Side::Forward,
        tile_rows: tile_rows(weight.width()),
    };
    x.contiguous()?.apply_op1(op).map_err(Error::from)
}

/// Bytes at most of the tile of f32 weights that a thread has at a time in a product with a quantised matrix [rows, columns] on
/// the CPU.
pub fn tile_bytes(rows: usize, columns: usize) -> u64 {
    (tile_rows(columns).min(rows) * columns * size_of::<f32>()) as u64
}

fn tile_rows(columns: usize) -> usize {
    (TILE_ELEMENTS / columns.max(1)).clamp(*TILE_ROWS.start(), *TILE_ROWS.end())
}

pub(crate) struct Product<W> {
    pub weight: W,
    pub side: Side,
    pub tile_rows: usize,
}

impl<W: Quantised> Product<W> {
    /// Checks the input and returns (rows of the input, width of the output).
    fn plan(&self, x: &Layout) -> CandleResult<(usize, usize)> {
        let (rows, width) = x.shape().dims2()?;
        let (expected, out) = match self.side {
            Side::Forward => (self.weight.width(), self.weight.height()),
            Side::Backward => (self.weight.height(), self.weight.width()),
        };
        if width != expected {
            candle_core::bail!(
                "{}: the input is {width} wide, the weight takes {expected}",
                W::PRODUCT
            );
        }
        Ok((rows, out))
    }

    /// x [N, width] -> [N, out].
    fn multiply(&self, x: &[f32], rows: usize, out_width: usize) -> CandleResult<Vec<f32>> {
        let mut out = vec![0f32; rows * out_width];
        let tiles = Tiles {
            weight: &self.weight,
            tile_rows: self.tile_rows,
        };
        tiles
            .multiply(self.side, x, rows, &mut out, Store::Replace)
            .map_err(candle_core::Error::wrap)?;
        Ok(out)
    }
}

/// x W^T or dY W of a frozen quantised matrix on plain slices, into `out` or added to it.
///
/// # Shapes
/// W [height, columns]; forward: x [rows, columns], out [rows, height]; backward: x [rows, height], out [rows, columns]
///
/// # Errors
/// Never for slices of these sizes.
///
/// # Panics
/// When a slice is too short: a mistake in the caller.
pub(crate) fn multiply<W: Quantised>(
    weight: &W,
    side: Side,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    store: Store,
) -> Result<()> {
    let tile_rows = tile_rows(weight.width());
    Tiles { weight, tile_rows }.multiply(side, x, rows, out, store)
}

thread_local! {
    /// A tile, kept from product to product: fresh memory costs the system a visit for every page.
    static TILE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// The columns of y that a tile gives.
    static COLUMNS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Lends `elements` numbers of what a thread keeps; they hold anything.
fn with_kept<T>(
    kept: &'static LocalKey<Cell<Vec<f32>>>,
    elements: usize,
    f: impl FnOnce(&mut [f32]) -> T,
) -> T {
    let mut buffer = kept.take();
    if buffer.len() < elements {
        buffer.resize(elements, 0.0);
    }
    let result = f(&mut buffer[..elements]);
    kept.set(buffer);
    result
}

/// A matrix, and the most rows of it that a tile has.
struct Tiles<'a, W> {
    weight: &'a W,
    tile_rows: usize,
}

impl<W: Quantised> Tiles<'_, W> {
    fn multiply(
        &self,
        side: Side,
        x: &[f32],
        rows: usize,
        out: &mut [f32],
        store: Store,
    ) -> Result<()> {
        match (rows, side) {
            (0, _) => Ok(()),
            (_, Side::Forward) => self.forward(x, rows, out, store),
            (_, Side::Backward) => self.backward(x, rows, out, store),
        }
    }

    /// A task for each tile: its columns come to be in a buffer of the task's thread, and go to `out` from there.
    fn forward(&self, x: &[f32], rows: usize, out: &mut [f32], store: Store) -> Result<()> {
        let (height, columns) = (self.weight.height(), self.weight.width());
        let tile_rows = height.div_ceil(TILES_MIN).max(TILE_ROWS_MIN);
        let tile_rows = tile_rows.min(self.tile_rows);
        let x = Matrix::new(x, rows, columns, columns);
        let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
        tasks.resize_with(height.div_ceil(tile_rows), || Vec::with_capacity(rows));
        for row in out[..rows * height].chunks_exact_mut(height) {
            for (task, part) in tasks.iter_mut().zip(row.chunks_mut(tile_rows)) {
                task.push(part);
            }
        }
        let tasks = tasks.into_par_iter().enumerate().with_max_len(1);
        tasks.try_for_each(|(task, parts)| {
            let first = task * tile_rows;
            let end = height.min(first + tile_rows);
            self.columns_of(first..end, x, rows, |y| {
                for (part, y) in parts.into_iter().zip(y.chunks_exact(end - first)) {
                    match store {
                        Store::Replace => part.copy_from_slice(y),
                        Store::Add => part.iter_mut().zip(y).for_each(|(sum, y)| *sum += y),
                    }
                }
            })
        })
    }

    /// Lends the columns of x W^T that some rows of W give, [rows of x, tile.len()].
    fn columns_of(
        &self,
        tile: Range<usize>,
        x: Matrix<'_>,
        rows: usize,
        take: impl FnOnce(&[f32]),
    ) -> Result<()> {
        let (height, columns) = (tile.len(), self.weight.width());
        with_kept(&TILE, height * columns, |values| {
            self.weight.dequantize_rows(tile, Threads::One, values)?;
            let values = Matrix::new(values, height, columns, columns).transpose();
            with_kept(&COLUMNS, rows * height, |y| {
                product(y, height, Store::Replace, 1.0, Threads::One, x, values);
                take(y);
            });
            Ok(())
        })
    }

    fn backward(&self, dy: &[f32], rows: usize, out: &mut [f32], store: Store) -> Result<()> {
        let (height, columns) = (self.weight.height(), self.weight.width());
        let most = self.tile_rows.min(height);
        with_kept(&TILE, most * columns, |buffer| {
            for first in (0..height).step_by(most) {
                let tile_height = most.min(height - first);
                let tile = &mut buffer[..tile_height * columns];
                let tile_rows = first..first + tile_height;
                self.weight.dequantize_rows(tile_rows, Threads::All, tile)?;
                let tile = Matrix::new(tile, tile_height, columns, columns);
                let store = if first > 0 { Store::Add } else { store };
                let dy = Matrix::new(&dy[first..], rows, tile_height, height);
                product(out, columns, store, 1.0, Threads::All, dy, tile);
            }
            Ok(())
        })
    }
}

fn convert<S: Copy + Sync, T: Send>(values: &[S], to: fn(S) -> T) -> Vec<T> {
    values
        .par_iter()
        .with_min_len(CONVERT_ELEMENTS)
        .map(|value| to(*value))
        .collect()
}

impl<W: Quantised> CustomOp1 for Product<W> {
    fn name(&self) -> &'static str {
        W::PRODUCT
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (rows, out_width) = self.plan(layout)?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("{}: the input must be contiguous", W::PRODUCT);
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
                "{}: activations must be f32, bf16 or f16, got {:?}",
                W::PRODUCT,
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
            Side::Forward => (weight_layout.transpose(0, 1)?, self.weight.width()),
            Side::Backward => (weight_layout.clone(), self.weight.height()),
        };
        let weight = device::storage(&storage)?;
        let y = x.matmul(weight, (1, rows, out_width, inner), layout, &right)?;
        Ok((y, (rows, out_width).into()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if self.side == Side::Backward {
            candle_core::bail!("{}: second derivatives are not supported", W::PRODUCT);
        }
        let op = Self {
            weight: self.weight.clone(),
            side: Side::Backward,
            tile_rows: self.tile_rows,
        };
        grad.contiguous()?.apply_op1_no_bwd(&op).map(Some)
    }
}
