//! Provides dequantisation of 4-bit rows to f32 on all cores: one table of 16 ready values a block, two lookups a byte.

use super::codebook::ENTRIES;
use super::{Nf4Matrix, Rounding};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Elements one task dequantises: 256 blocks, long enough to pay for the task.
const TASK_ELEMENTS: usize = 1 << 14;

impl Nf4Matrix {
    /// Dequantises the rows `rows` into `out`, on all cores.
    ///
    /// # Shapes
    /// out [rows.len(), columns], row-major
    ///
    /// # Errors
    /// [`Error::Shape`] when the rows are outside the matrix or `out` has another size.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let count = rows.len() * self.columns;
        if rows.end > self.rows || out.len() != count {
            return Err(Error::shape(
                format!("rows {rows:?} of an NF4 matrix with {} rows", self.rows),
                &[rows.len(), self.columns],
                &[out.len()],
            ));
        }
        let start = rows.start * self.columns;
        out.par_chunks_mut(TASK_ELEMENTS)
            .enumerate()
            .for_each(|(task, out)| self.dequantize_span(start + task * TASK_ELEMENTS, out));
        Ok(())
    }

    /// The whole matrix as a dense tensor [rows, columns]: the slow reference, and what devices without an NF4 kernel multiply with.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn dequantize(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut values = vec![0f32; self.rows * self.columns];
        self.dequantize_rows(0..self.rows, &mut values)?;
        let shape = (self.rows, self.columns);
        // Converted on the host, so that a 16-bit matrix crosses the bus as such.
        let host = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?;
        Ok(host.to_device(device)?)
    }

    /// Elements `start..start + out.len()` of the flattened matrix, block by block.
    fn dequantize_span(&self, start: usize, out: &mut [f32]) {
        let mut position = start;
        let mut rest = out;
        while !rest.is_empty() {
            let block = position / self.block_size;
            let in_block = (block + 1) * self.block_size - position;
            let (head, tail) = rest.split_at_mut(in_block.min(rest.len()));
            decode(&self.codes, position, &self.block_values(block), head);
            position += head.len();
            rest = tail;
        }
    }

    /// The 16 values that codes of `block` stand for.
    fn block_values(&self, block: usize) -> [f32; ENTRIES] {
        let scale = self.scale(block);
        let product = self.quant_type.table().map(|value| value * scale);
        match self.rounding {
            Rounding::F32 => product,
            Rounding::BF16 => product.map(|value| bf16::from_f32(value).to_f32()),
            Rounding::F16 => product.map(|value| f16::from_f32(value).to_f32()),
        }
    }
}

/// Looks up the codes of the elements from `position` on.
fn decode(codes: &[u8], position: usize, values: &[f32; ENTRIES], out: &mut [f32]) {
    let high = |byte: u8| values[usize::from(byte >> 4)];
    let low = |byte: u8| values[usize::from(byte & 0xf)];
    let mut bytes = codes.get(position / 2..).unwrap_or_default().iter();
    let mut out = out;
    if !position.is_multiple_of(2)
        && let Some((first, rest)) = std::mem::take(&mut out).split_first_mut()
        && let Some(byte) = bytes.next()
    {
        *first = low(*byte);
        out = rest;
    }
    let (pairs, last) = out.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(&mut bytes) {
        *pair = [high(*byte), low(*byte)];
    }
    if let ([last], Some(byte)) = (last, bytes.next()) {
        *last = high(*byte);
    }
}
