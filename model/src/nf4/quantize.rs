//! Provides quantisation of f32 values to NF4 with the codes that bitsandbytes would choose.

use super::codebook::{DYNAMIC, NF4, nearest};
use super::{BLOCK_SIZE, NESTED_BLOCK_SIZE, NestedScales, Nf4Matrix, Rounding, Scales};
use crate::{Error, Result};
use rayon::prelude::*;

/// bitsandbytes' floor under a scale before it divides by it.
const SCALE_MIN: f32 = 1e-38;

impl Nf4Matrix {
    /// Quantises a row-major matrix in blocks of 64, its scales in blocks of 256 when `double_quant` is set.
    ///
    /// Codes equal bitsandbytes' (its CPU backend divides in the last, partial block and multiplies by the reciprocal in the
    /// others; so does this). The offset of double quantisation is the mean scale: here the rounded exact mean, in
    /// bitsandbytes a f32 sum in hardware-dependent order, so it may differ in the last bits.
    ///
    /// `rounding` is that of the type the values come from, see [`Rounding`].
    ///
    /// # Shapes
    /// values [rows, columns]
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not agree or are zero, [`Error::Unsupported`] when a value is not finite.
    pub fn quantize(
        values: &[f32],
        rows: usize,
        columns: usize,
        double_quant: bool,
        rounding: Rounding,
    ) -> Result<Self> {
        let what = "the matrix to quantise to NF4";
        if super::element_count(what, rows, columns)? != values.len() {
            return Err(Error::shape(what, &[rows, columns], &[values.len()]));
        }
        if let Some(index) = values.par_iter().position_first(|value| !value.is_finite()) {
            return Err(Error::Unsupported {
                what: format!(
                    "quantising {} at row {}, column {}",
                    values[index],
                    index / columns,
                    index % columns
                ),
                remedy: "the weights are damaged; download them again".into(),
            });
        }
        let mut codes = vec![0u8; values.len().div_ceil(2)];
        let absmax: Vec<f32> = values
            .par_chunks(BLOCK_SIZE)
            .zip(codes.par_chunks_mut(BLOCK_SIZE / 2))
            .map(|(values, codes)| quantize_block(values, codes))
            .collect();
        Ok(Self {
            rows,
            columns,
            block_size: BLOCK_SIZE,
            codes,
            scales: if double_quant {
                Scales::Nested(Box::new(NestedScales::quantize(&absmax)))
            } else {
                Scales::Plain(absmax)
            },
            rounding,
        })
    }
}

/// Writes a block's codes and returns its scale.
fn quantize_block(values: &[f32], codes: &mut [u8]) -> f32 {
    let absmax = values.iter().fold(0f32, |max, value| max.max(value.abs()));
    let floor = absmax.max(SCALE_MIN);
    let full = values.len() == BLOCK_SIZE;
    let reciprocal = 1.0 / floor;
    let code = |value: f32| {
        let unit = if full {
            value * reciprocal
        } else {
            value / floor
        };
        nearest(&NF4, unit.clamp(-1.0, 1.0))
    };
    for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
        *byte = match pair {
            [first, second] => code(*first) << 4 | code(*second),
            // The padding behind an odd count is quantised like a zero.
            [last] => code(*last) << 4 | code(0.0),
            _ => 0,
        };
    }
    if full { absmax } else { floor }
}

impl NestedScales {
    fn quantize(scales: &[f32]) -> Self {
        let sum: f64 = scales.iter().map(|scale| f64::from(*scale)).sum();
        let offset = (sum / scales.len() as f64) as f32;
        let mut codes = Vec::with_capacity(scales.len());
        let mut absmax = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK_SIZE));
        for block in scales.chunks(NESTED_BLOCK_SIZE) {
            let centred = || block.iter().map(|scale| scale - offset);
            let max = centred().fold(0f32, |max, value| max.max(value.abs()));
            let reciprocal = 1.0 / max.max(SCALE_MIN);
            codes.extend(
                centred().map(|value| nearest(&*DYNAMIC, (value * reciprocal).clamp(-1.0, 1.0))),
            );
            absmax.push(max);
        }
        Self {
            codes,
            map: *DYNAMIC,
            absmax,
            block_size: NESTED_BLOCK_SIZE,
            offset,
        }
    }
}
