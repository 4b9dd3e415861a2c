//! Provides quantisation of f32 values to NF4 or FP4 with the codes that bitsandbytes would choose.

use super::codebook::{DYNAMIC, nearest_dynamic};
use super::{BLOCK_SIZE, NESTED_BLOCK_SIZE, NestedScales, Nf4Matrix, QuantType, Rounding, Scales};
use crate::element::single;
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::RangeInclusive;

/// Block sizes that bitsandbytes knows; always powers of two.
pub const BLOCK_SIZES: RangeInclusive<usize> = 32..=4096;
/// Elements whose codes are counted at once; on the stack.
const STEP: usize = 64;

/// bitsandbytes' floor under a scale before it divides by it.
const SCALE_MIN: f32 = 1e-38;

/// How a matrix becomes four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantOptions {
    /// What codes stand for.
    pub quant_type: QuantType,
    /// Elements that share a scale: a power of two in [`BLOCK_SIZES`].
    pub block_size: usize,
    /// Whether scales become 8 bits, in blocks of 256.
    pub double_quant: bool,
}

impl Default for QuantOptions {
    fn default() -> Self {
        Self {
            quant_type: QuantType::Nf4,
            block_size: BLOCK_SIZE,
            double_quant: true,
        }
    }
}

impl Nf4Matrix {
    /// As [`quantize_as`](Self::quantize_as), to NF4 in blocks of 64.
    ///
    /// # Errors
    /// As there.
    pub fn quantize(
        values: &[f32],
        rows: usize,
        columns: usize,
        double_quant: bool,
        rounding: Rounding,
    ) -> Result<Self> {
        let options = QuantOptions {
            double_quant,
            ..QuantOptions::default()
        };
        Self::quantize_as(options, values, rows, columns, rounding)
    }

    /// Quantises a row-major matrix.
    ///
    /// The 4-bit codes equal bitsandbytes' (its portable backend divides in the last, partial block and multiplies by the
    /// reciprocal in the others; so does this). Double-quantised scales take the nearest entry, as its CUDA and portable
    /// kernels do; its CPU kernel looks them up in 65536 steps and in 0.3 % of blocks takes the entry beside it. The offset is
    /// the rounded exact mean, in bitsandbytes an f32 sum in hardware-dependent order: the last bit may differ.
    ///
    /// `rounding` is that of the type the values come from, see [`Rounding`].
    ///
    /// # Shapes
    /// values [rows, columns]
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes do not agree or are zero, [`Error::InvalidOption`] for a block size that bitsandbytes
    /// does not know, [`Error::Unsupported`] when a value is not finite.
    pub fn quantize_as(
        options: QuantOptions,
        values: &[f32],
        rows: usize,
        columns: usize,
        rounding: Rounding,
    ) -> Result<Self> {
        let what = "the matrix to quantise to four bits";
        if super::element_count(what, rows, columns)? != values.len() {
            return Err(Error::shape(what, &[rows, columns], &[values.len()]));
        }
        let QuantOptions {
            quant_type,
            block_size,
            double_quant,
        } = options;
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            return Err(Error::InvalidOption {
                option: "block_size",
                message: format!("{block_size} is no power of two in {BLOCK_SIZES:?}"),
            });
        }
        if let Some(index) = first_not_finite(values) {
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
            .par_chunks(block_size)
            .zip(codes.par_chunks_mut(block_size / 2))
            .map(|(values, codes)| {
                quantize_block(quant_type, values, codes, values.len() == block_size)
            })
            .collect();
        Ok(Self {
            quant_type,
            rows,
            columns,
            block_size,
            codes,
            scales: if double_quant {
                Scales::Nested(Box::new(NestedScales::quantize(&absmax)))
            } else {
                Scales::Plain(absmax)
            },
            rounding,
            resident: super::Resident::default(),
        })
    }
}

/// The index of the first NaN or infinity.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    const CHUNK: usize = 1 << 14;
    values
        .par_chunks(CHUNK)
        .enumerate()
        .find_map_first(|(chunk, values)| {
            let position = values.iter().position(|value| !value.is_finite())?;
            Some(chunk * CHUNK + position)
        })
}

/// Writes a block's codes and returns its scale.
fn quantize_block(quant_type: QuantType, values: &[f32], codes: &mut [u8], full: bool) -> f32 {
    let absmax = values.iter().fold(0f32, |max, value| max.max(value.abs()));
    let floor = absmax.max(SCALE_MIN);
    let reciprocal = 1.0 / floor;
    for (values, codes) in values.chunks(STEP).zip(codes.chunks_mut(STEP / 2)) {
        // The padding behind an odd count is quantised like a zero.
        let mut unit = [0f32; STEP];
        for (unit, value) in unit.iter_mut().zip(values) {
            let scaled = if full {
                value * reciprocal
            } else {
                value / floor
            };
            *unit = scaled.clamp(-1.0, 1.0);
        }
        // Counted midpoint by midpoint over all of them: no branches, so it vectorises.
        let mut counts = [0u32; STEP];
        for middle in quant_type.midpoints() {
            for (count, unit) in counts.iter_mut().zip(&unit) {
                *count += u32::from(*unit > *middle);
            }
        }
        let order = quant_type.ascending();
        let code = |count: &u32| order[*count as usize];
        let (pairs, _) = counts.as_chunks::<2>();
        for (byte, [first, second]) in codes.iter_mut().zip(pairs) {
            *byte = code(first) << 4 | code(second);
        }
    }
    if full { absmax } else { floor }
}

impl NestedScales {
    fn quantize(scales: &[f32]) -> Self {
        let sum: f64 = scales.iter().map(|scale| f64::from(*scale)).sum();
        let offset = single(sum / scales.len() as f64);
        let mut codes = Vec::with_capacity(scales.len());
        let mut absmax = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK_SIZE));
        for block in scales.chunks(NESTED_BLOCK_SIZE) {
            let centred = || block.iter().map(|scale| scale - offset);
            let max = centred().fold(0f32, |max, value| max.max(value.abs()));
            let reciprocal = 1.0 / max.max(SCALE_MIN);
            let unit = centred().map(|value| (value * reciprocal).clamp(-1.0, 1.0));
            codes.extend(unit.map(nearest_dynamic));
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
