//! Provides the product with a matrix that is not held in f32: a tile of rows is widened, multiplied and discarded.
//!
//! y = x W^T: every core dequantises a tile of its own and fills its columns of y, so cores wait for each other once a product.
//! dX = dY W sums over tiles: there is one at a time, and all cores share its work. The gradient of W does not exist.

use super::each_row;
use super::matmul::{Matrix, Store, Threads, product};
use crate::Result;
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

/// A matrix [height, width] whose rows become f32 when they are needed.
pub(crate) trait Quantised: Sync {
    /// Rows, a linear layer's output features.
    fn height(&self) -> usize;

    /// Columns, a linear layer's input features.
    fn width(&self) -> usize;

    /// Dequantises rows into `out` [rows.len(), width].
    fn dequantize_rows(&self, rows: Range<usize>, threads: Threads, out: &mut [f32]) -> Result<()>;

    /// The rows, where they are f32 already.
    fn lend_rows(&self, _rows: Range<usize>) -> Option<&[f32]> {
        None
    }
}

/// Bytes at most of the tile of f32 weights that a thread has at a time in a product with a quantised matrix [rows, columns] on
/// the CPU.
pub fn tile_bytes(rows: usize, columns: usize) -> u64 {
    (tile_rows(columns).min(rows) * columns * size_of::<f32>()) as u64
}

fn tile_rows(columns: usize) -> usize {
    (TILE_ELEMENTS / columns.max(1)).clamp(*TILE_ROWS.start(), *TILE_ROWS.end())
}

/// Which product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// x [N, in] -> x W^T [N, out].
    Forward,
    /// The same, where no row's sums depend on the other rows: for few of them.
    EachRow,
    /// dY [N, out] -> dY W [N, in].
    Backward,
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

/// As [`multiply`], with tiles of so many rows.
#[cfg(test)]
pub(crate) fn multiply_in_tiles<W: Quantised>(
    weight: &W,
    tile_rows: usize,
    side: Side,
    x: &[f32],
    out: &mut [f32],
) -> Result<()> {
    let width = match side {
        Side::Forward | Side::EachRow => weight.width(),
        Side::Backward => weight.height(),
    };
    let rows = x.len() / width;
    Tiles { weight, tile_rows }.multiply(side, x, rows, out, Store::Replace)
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
            (_, Side::Forward | Side::EachRow) => self.forward(side, x, rows, out, store),
            (_, Side::Backward) => self.backward(x, rows, out, store),
        }
    }

    /// A task for each tile: its columns come to be in a buffer of the task's thread, and go to `out` from there.
    fn forward(
        &self,
        side: Side,
        x: &[f32],
        rows: usize,
        out: &mut [f32],
        store: Store,
    ) -> Result<()> {
        let (height, columns) = (self.weight.height(), self.weight.width());
        let tile_rows = height.div_ceil(TILES_MIN).max(TILE_ROWS_MIN);
        let tile_rows = tile_rows.min(self.tile_rows);
        let x = &x[..rows * columns];
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
            self.columns_of(first..end, side, x, |y| {
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
        side: Side,
        x: &[f32],
        take: impl FnOnce(&[f32]),
    ) -> Result<()> {
        let (height, columns) = (tile.len(), self.weight.width());
        let rows = x.len() / columns;
        let multiply = |values: &[f32]| {
            with_kept(&COLUMNS, rows * height, |y| {
                if side == Side::EachRow {
                    each_row::product(y, Store::Replace, 1.0, x, values, columns);
                } else {
                    let x = Matrix::new(x, rows, columns, columns);
                    let values = Matrix::new(values, height, columns, columns).transpose();
                    product(y, height, Store::Replace, 1.0, Threads::One, x, values);
                }
                take(y);
            });
        };
        if let Some(values) = self.weight.lend_rows(tile.clone()) {
            multiply(values);
            return Ok(());
        }
        with_kept(&TILE, height * columns, |values| {
            self.weight.dequantize_rows(tile, Threads::One, values)?;
            multiply(values);
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
