//! Provides dequantisation of 4-bit rows to f32 on all cores: one table of 16 ready values a block, two lookups a byte.

use super::codebook::ENTRIES;
use super::{Nf4Matrix, Rounding};
use crate::ops::cpu::{Quantised, Threads};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use half::f16;
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
        self.check_rows(&rows, out)?;
        let start = rows.start * self.columns;
        out.par_chunks_mut(TASK_ELEMENTS)
            .enumerate()
            .for_each(|(task, out)| self.dequantize_span(start + task * TASK_ELEMENTS, out));
        Ok(())
    }

    fn check_rows(&self, rows: &Range<usize>, out: &[f32]) -> Result<()> {
        let count = rows.len() * self.columns;
        if rows.end > self.rows || out.len() != count {
            return Err(Error::shape(
                format!("rows {rows:?} of an NF4 matrix with {} rows", self.rows),
                &[rows.len(), self.columns],
                &[out.len()],
            ));
        }
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
        let mut values = [0f32; ENTRIES];
        for (value, entry) in values.iter_mut().zip(self.quant_type.table()) {
            *value = entry * scale;
        }
        match self.rounding {
            Rounding::F32 => {}
            Rounding::BF16 => values.iter_mut().for_each(round_to_bf16),
            Rounding::F16 => {
                for value in &mut values {
                    *value = f16::from_f32(*value).to_f32();
                }
            }
        }
        values
    }
}

impl Quantised for Nf4Matrix {
    fn height(&self) -> usize {
        self.rows
    }

    fn width(&self) -> usize {
        self.columns
    }

    fn dequantize_rows(&self, rows: Range<usize>, threads: Threads, out: &mut [f32]) -> Result<()> {
        if threads == Threads::All {
            return Nf4Matrix::dequantize_rows(self, rows, out);
        }
        self.check_rows(&rows, out)?;
        self.dequantize_span(rows.start * self.columns, out);
        Ok(())
    }
}

/// To the nearest bf16, ties to even, NaN left alone: what `half` does, in a form that compilers vectorise.
fn round_to_bf16(value: &mut f32) {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    if !value.is_nan() {
        *value = f32::from_bits(rounded);
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
    let done = wide::decode_pairs(bytes.as_slice(), values, out);
    let (_, out) = out.split_at_mut(2 * done);
    let mut bytes = bytes.as_slice()[done..].iter();
    let (pairs, last) = out.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(&mut bytes) {
        *pair = [high(*byte), low(*byte)];
    }
    if let ([last], Some(byte)) = (last, bytes.next()) {
        *last = high(*byte);
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    //! Sixteen lookups at once: the table fills one AVX-512 register, and a permutation reads it.

    use super::ENTRIES;
    use std::arch::x86_64::{
        __m128i, _mm_and_si128, _mm_loadl_epi64, _mm_set1_epi8, _mm_srli_epi16, _mm_unpacklo_epi8,
        _mm512_cvtepu8_epi32, _mm512_loadu_ps, _mm512_permutexvar_ps, _mm512_storeu_ps,
    };

    /// Looks up the codes of whole groups of 8 bytes and says how many bytes that were; none on a CPU without AVX-512.
    pub(super) fn decode_pairs(bytes: &[u8], values: &[f32; ENTRIES], out: &mut [f32]) -> usize {
        if !(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("sse2")) {
            return 0;
        }
        let (groups, _) = bytes.as_chunks::<8>();
        let (places, _) = out.as_chunks_mut::<16>();
        #[expect(unsafe_code, reason = "vector instructions that not every CPU has")]
        // SAFETY: the features were detected above.
        unsafe {
            decode_groups(groups, values, places)
        };
        8 * groups.len().min(places.len())
    }

    #[target_feature(enable = "avx512f,sse2")]
    fn decode_groups(groups: &[[u8; 8]], values: &[f32; ENTRIES], out: &mut [[f32; 16]]) {
        #[expect(unsafe_code, reason = "loads and stores of vectors take raw pointers")]
        // SAFETY: every pointer is to an array as long as the load or store.
        unsafe {
            let table = _mm512_loadu_ps(values.as_ptr());
            let low_half = _mm_set1_epi8(0x0f);
            for (group, out) in groups.iter().zip(out) {
                let bytes = _mm_loadl_epi64(group.as_ptr().cast::<__m128i>());
                let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), low_half);
                // The earlier element is in the high half of its byte.
                let codes = _mm_unpacklo_epi8(high, _mm_and_si128(bytes, low_half));
                let looked_up = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), table);
                _mm512_storeu_ps(out.as_mut_ptr(), looked_up);
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod wide {
    //! No other CPU has a permutation of sixteen floats.

    use super::ENTRIES;

    pub(super) fn decode_pairs(_: &[u8], _: &[f32; ENTRIES], _: &mut [f32]) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::round_to_bf16;
    use half::bf16;

    #[test]
    fn bf16_rounding_is_that_of_half() {
        // Every exponent, ties and their neighbours, both signs.
        for high in (0..=u16::MAX).step_by(7) {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let mut rounded = value;
                round_to_bf16(&mut rounded);
                let expected = bf16::from_f32(value).to_f32();
                assert!(
                    rounded.to_bits() == expected.to_bits() || value.is_nan(),
                    "{value:e}"
                );
            }
        }
    }
}
