//! Provides a frozen matrix in the blocks of ggml, as GGUF files store it; rows are dequantised when they are needed.
//!
//! A block is 32 or 256 neighbours of one row with their scale, so rows are whole blocks: they can be taken one by one, and in
//! another order. candle has the blocks and their arithmetic.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::element::lend;
use crate::ops::cpu::{Quantised, Side, Store, Threads, multiply};
use crate::{Error, Result};

/// Elements of a strip: what is read from a file, and dequantised on a device, at a time. 128 MiB as f32.
const STRIP_ELEMENTS: usize = 1 << 25;
/// Elements one task dequantises.
const TASK_ELEMENTS: usize = 1 << 14;

/// A frozen matrix [rows, columns] in the blocks of ggml; a clone shares them.
#[derive(Clone)]
pub struct PackedMatrix {
    dtype: GgmlDType,
    /// `strip_rows` rows each, but the last.
    strips: Arc<[QTensor]>,
    strip_rows: usize,
    rows: usize,
    columns: usize,
}

/// The types whose blocks are read here, with ggml's names and numbers. Q8_1 and Q8_K are for activations: no file has them.
const BLOCK_TYPES: [(GgmlDType, &str, u32); 13] = [
    (GgmlDType::F32, "F32", 0),
    (GgmlDType::F16, "F16", 1),
    (GgmlDType::BF16, "BF16", 30),
    (GgmlDType::Q4_0, "Q4_0", 2),
    (GgmlDType::Q4_1, "Q4_1", 3),
    (GgmlDType::Q5_0, "Q5_0", 6),
    (GgmlDType::Q5_1, "Q5_1", 7),
    (GgmlDType::Q8_0, "Q8_0", 8),
    (GgmlDType::Q2K, "Q2_K", 10),
    (GgmlDType::Q3K, "Q3_K", 11),
    (GgmlDType::Q4K, "Q4_K", 12),
    (GgmlDType::Q5K, "Q5_K", 13),
    (GgmlDType::Q6K, "Q6_K", 14),
];

/// Bytes of a matrix [rows, columns] in blocks of the type that ggml calls `name`; `None` where it has none, or rows are no
/// whole blocks.
pub fn packed_bytes(name: &str, rows: usize, columns: usize) -> Option<u64> {
    let known = BLOCK_TYPES.iter().find(|(_, known, _)| *known == name);
    let row_bytes = row_bytes(known?.0, columns)?;
    Some(rows.checked_mul(row_bytes)? as u64)
}

/// Elements of a matrix of so many that are dequantised, or read from a file, at a time where that is by the strip.
pub fn strip_elements(elements: u64) -> u64 {
    elements.min(STRIP_ELEMENTS as u64)
}

/// ggml's name of a type.
pub(crate) fn type_name(dtype: GgmlDType) -> &'static str {
    let known = BLOCK_TYPES.iter().find(|(known, ..)| *known == dtype);
    known.map_or("unknown", |(_, name, _)| name)
}

/// The type that ggml gives this number; `None` where its blocks are not read.
pub(crate) fn type_of(number: u32) -> Option<GgmlDType> {
    let known = BLOCK_TYPES.iter().find(|(.., known)| *known == number);
    known.map(|(dtype, ..)| *dtype)
}

/// Bytes of a row of `columns` elements; `None` where they are no whole blocks.
pub(crate) fn row_bytes(dtype: GgmlDType, columns: usize) -> Option<usize> {
    let whole = columns.is_multiple_of(dtype.block_size());
    let blocks = whole.then(|| columns / dtype.block_size())?;
    blocks.checked_mul(dtype.type_size())
}

impl PackedMatrix {
    /// A matrix of one strip.
    ///
    /// # Errors
    /// When the blocks are no matrix.
    pub fn new(blocks: QTensor) -> Result<Self> {
        let (rows, columns) = blocks.shape().dims2()?;
        Ok(Self {
            dtype: blocks.dtype(),
            strips: Arc::new([blocks]),
            strip_rows: rows.max(1),
            rows,
            columns,
        })
    }

    /// Takes the blocks from `read`, which fills a buffer with those of some rows, a strip at a time.
    ///
    /// # Errors
    /// A type or a width without whole blocks; what `read` says; a device without room.
    pub(crate) fn read(
        dtype: GgmlDType,
        (rows, columns): (usize, usize),
        device: &Device,
        read: impl FnMut(Range<usize>, &mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let strip_rows = (STRIP_ELEMENTS / columns.max(1)).max(1);
        Self::read_strips(dtype, (rows, columns), strip_rows, device, read)
    }

    fn read_strips(
        dtype: GgmlDType,
        (rows, columns): (usize, usize),
        strip_rows: usize,
        device: &Device,
        mut read: impl FnMut(Range<usize>, &mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let unfit = || {
            Error::Input(format!(
                "[{rows}, {columns}] cannot be held in blocks of {dtype:?}, {} elements each",
                dtype.block_size()
            ))
        };
        let row_bytes = row_bytes(dtype, columns).filter(|bytes| *bytes > 0 && rows > 0);
        let row_bytes = row_bytes.ok_or_else(unfit)?;
        let strip_rows = strip_rows.min(rows);
        let mut strips = Vec::with_capacity(rows.div_ceil(strip_rows));
        // Words, so that blocks, which begin with a half or a float, are aligned.
        let mut words = vec![0u32; (strip_rows * row_bytes).div_ceil(size_of::<u32>())];
        for first in (0..rows).step_by(strip_rows) {
            let count = strip_rows.min(rows - first);
            let bytes = bytemuck::cast_slice_mut::<u32, u8>(&mut words);
            let (bytes, _) = bytes.split_at_mut(count * row_bytes);
            read(first..first + count, bytes)?;
            let blocks = QStorage::from_data(Cow::Borrowed(bytes), device, dtype)?;
            strips.push(QTensor::new(blocks, (count, columns))?);
        }
        Ok(Self {
            dtype,
            strips: strips.into(),
            strip_rows,
            rows,
            columns,
        })
    }

    /// Rows, a linear layer's output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, a linear layer's input features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// ggml's name of the blocks, such as `Q4_K`.
    pub fn type_name(&self) -> &'static str {
        type_name(self.dtype)
    }

    /// Memory taken by the blocks, in bytes.
    pub fn bytes(&self) -> usize {
        let strips = self.strips.iter();
        strips.map(QTensor::storage_size_in_bytes).sum()
    }

    /// The first `rows` rows, sharing the blocks.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are fewer.
    pub fn narrow(&self, rows: usize) -> Result<Self> {
        if rows == 0 || rows > self.rows {
            let what = "rows to keep of a packed matrix";
            return Err(Error::shape(what, &[self.rows], &[rows]));
        }
        Ok(Self {
            rows,
            ..self.clone()
        })
    }

    /// Dequantises the rows `rows` into `out`, on all cores.
    ///
    /// # Shapes
    /// out [rows.len(), columns], row-major
    ///
    /// # Errors
    /// [`Error::Shape`] when the rows are outside the matrix or `out` has another size.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.check_rows(&rows, out)?;
        let task_rows = (TASK_ELEMENTS / self.columns).max(1);
        out.par_chunks_mut(task_rows * self.columns)
            .enumerate()
            .try_for_each(|(task, out)| self.dequantize_span(rows.start + task * task_rows, out))
    }

    fn check_rows(&self, rows: &Range<usize>, out: &[f32]) -> Result<()> {
        let count = rows.len() * self.columns;
        if rows.end > self.rows || out.len() != count {
            return Err(Error::shape(
                format!("rows {rows:?} of a packed matrix with {} rows", self.rows),
                &[rows.len(), self.columns],
                &[out.len()],
            ));
        }
        Ok(())
    }

    /// Rows from `first` on, as many as `out` has room for, on the calling thread.
    fn dequantize_span(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let (mut row, mut out) = (first, out);
        while !out.is_empty() {
            let at = row % self.strip_rows;
            let count = (self.strip_rows - at).min(out.len() / self.columns);
            let strip = self.strips.get(row / self.strip_rows);
            let strip = strip.ok_or_else(|| Error::Input(format!("there is no row {row}")))?;
            let ids = Tensor::arange(at as u32, (at + count) as u32, &Device::Cpu)?;
            let values = strip.embedding(&ids)?.to_device(&Device::Cpu)?;
            let (part, rest) = out.split_at_mut(count * self.columns);
            part.copy_from_slice(lend(&values).numbers()?);
            (row, out) = (row + count, rest);
        }
        Ok(())
    }

    /// The whole matrix as a dense tensor [rows, columns].
    ///
    /// # Errors
    /// When the device has no room.
    pub fn dequantize(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let parts = self.parts(dtype, device).collect::<Result<Vec<_>>>()?;
        match parts.as_slice() {
            [whole] => Ok(whole.clone()),
            parts => Ok(Tensor::cat(parts, 0)?),
        }
    }

    /// The strips one after the other, dense: what never takes more room than one of them.
    fn parts(&self, dtype: DType, device: &Device) -> impl Iterator<Item = Result<Tensor>> {
        let firsts = (0..self.rows).step_by(self.strip_rows);
        self.strips.iter().zip(firsts).map(move |(strip, first)| {
            let count = self.strip_rows.min(self.rows - first);
            if strip.device().is_cpu() {
                let mut values = vec![0f32; count * self.columns];
                self.dequantize_rows(first..first + count, &mut values)?;
                let host = Tensor::from_vec(values, (count, self.columns), &Device::Cpu)?;
                // Converted on the host, so that a 16-bit matrix crosses the bus as such.
                return Ok(host.to_dtype(dtype)?.to_device(device)?);
            }
            let values = strip.dequantize(&strip.device())?.narrow(0, 0, count)?;
            Ok(values.to_dtype(dtype)?.to_device(device)?)
        })
    }

    /// The rows of `ids` [n], f32 where `ids` are; for blocks in host memory: [n, columns].
    ///
    /// # Errors
    /// When an id is no row.
    pub(crate) fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        let rows = ids.to_vec1::<u32>()?;
        let mut values = vec![0f32; rows.len() * self.columns];
        values
            .par_chunks_mut(self.columns)
            .zip(&rows)
            .try_for_each(|(out, row)| self.dequantize_span(*row as usize, out))?;
        let shape = (rows.len(), self.columns);
        Ok(Tensor::from_vec(values, shape, ids.device())?)
    }

    /// x W^T: tile by tile on the CPU, strip by strip on a device.
    ///
    /// # Shapes
    /// x [N, columns] -> [N, rows], in x's type
    ///
    /// # Errors
    /// When x has another width.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        if width != self.columns {
            let what = "rows for a packed matrix";
            return Err(Error::shape(what, &[rows, self.columns], x.dims()));
        }
        if !x.device().is_cpu() {
            return self.product_by_strips(x);
        }
        let wide = x.to_dtype(DType::F32)?.contiguous()?;
        let mut out = vec![0f32; rows * self.rows];
        let (wide, store) = (lend(&wide), Store::Replace);
        multiply(self, Side::Forward, wide.numbers()?, rows, &mut out, store)?;
        let out = Tensor::from_vec(out, (rows, self.rows), x.device())?;
        Ok(out.to_dtype(x.dtype())?)
    }

    fn product_by_strips(&self, x: &Tensor) -> Result<Tensor> {
        let parts = self.parts(x.dtype(), x.device());
        let products = parts.map(|part| Ok(x.matmul(&part?.t()?)?));
        Ok(Tensor::cat(&products.collect::<Result<Vec<_>>>()?, 1)?)
    }
}

impl Quantised for PackedMatrix {
    fn height(&self) -> usize {
        self.rows
    }

    fn width(&self) -> usize {
        self.columns
    }

    fn dequantize_rows(&self, rows: Range<usize>, threads: Threads, out: &mut [f32]) -> Result<()> {
        if threads == Threads::All {
            return Self::dequantize_rows(self, rows, out);
        }
        self.check_rows(&rows, out)?;
        self.dequantize_span(rows.start, out)
    }
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedMatrix")
            .field("dtype", &self.dtype)
            .field("shape", &[self.rows, self.columns])
            .finish()
    }
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
