//! Provides matrices in bitsandbytes' 4-bit formats: NF4 or FP4 codes in blocks, with plain or double-quantised block scales.
//!
//! Element i of the flattened matrix is `table[code_i] * scale[i / block_size]`, rounded to the type that the matrix had before
//! it was quantised. Codes are packed two to a byte, the earlier element in the high half. Blocks run over the flattened
//! matrix: a row may begin inside a block, and inside a byte when the width is odd. Double quantisation stores the scales
//! as 8-bit codes: `scale[b] = map[code_b] * nested_scale[b / 256] + offset`.
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

mod card;
mod codebook;
mod dequantize;
#[cfg(test)]
mod product_tests;
mod quantize;
mod read;
#[cfg(test)]
mod tests;
mod write;

use crate::{Error, Result};
use candle_core::DType;
use card::Resident;
use codebook::DYNAMIC_ENTRIES;
pub use codebook::QuantType;
pub use quantize::{BLOCK_SIZES, QuantOptions};
pub use write::StoredTensor;

/// Elements that share a scale, where nothing else is asked for.
pub const BLOCK_SIZE: usize = 64;
/// Scales that share a nested scale when this crate quantises.
pub const NESTED_BLOCK_SIZE: usize = 256;

/// A frozen matrix [rows, columns] in NF4 or FP4.
#[derive(Clone)]
pub struct Nf4Matrix {
    quant_type: QuantType,
    rows: usize,
    columns: usize,
    block_size: usize,
    codes: Vec<u8>,
    scales: Scales,
    rounding: Rounding,
    /// Codes and scales in a card's memory, from the first use there on.
    resident: Resident,
}

#[derive(Clone)]
enum Scales {
    Plain(Vec<f32>),
    Nested(Box<NestedScales>),
}

#[derive(Clone)]
struct NestedScales {
    codes: Vec<u8>,
    map: [f32; DYNAMIC_ENTRIES],
    absmax: Vec<f32>,
    block_size: usize,
    offset: f32,
}

/// What a dequantised element is rounded to before anything is computed with it.
///
/// bitsandbytes dequantises into the type of the matrix that was quantised (`dtype` in the quantisation state) and multiplies
/// with that, so a bf16 checkpoint's weights are bf16 values even when activations are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Not rounded: the product code * scale in f32.
    F32,
    /// To the nearest bf16, ties to even.
    BF16,
    /// To the nearest f16, ties to even.
    F16,
}

impl Rounding {
    /// The rounding that belongs to matrices of type `dtype`; `None` when bitsandbytes does not quantise such matrices.
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::BF16 => Some(Self::BF16),
            DType::F16 => Some(Self::F16),
            _ => None,
        }
    }
}

impl Nf4Matrix {
    /// The same codes, dequantised with another rounding than the checkpoint's own.
    pub fn with_rounding(mut self, rounding: Rounding) -> Self {
        self.rounding = rounding;
        self
    }

    /// Rows, a linear layer's output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, a linear layer's input features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How dequantised elements are rounded.
    pub fn rounding(&self) -> Rounding {
        self.rounding
    }

    /// What the codes stand for.
    pub fn quant_type(&self) -> QuantType {
        self.quant_type
    }

    /// Elements that share a scale.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Whether the scales are quantised too.
    pub fn is_double_quantized(&self) -> bool {
        matches!(self.scales, Scales::Nested(_))
    }

    /// Memory taken by codes and scales, in bytes.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Plain(absmax) => size_of_val(absmax.as_slice()),
            Scales::Nested(nested) => {
                nested.codes.len()
                    + size_of_val(nested.absmax.as_slice())
                    + size_of::<NestedScales>()
            }
        };
        self.codes.len() + scales
    }

    /// The scale of block `block`; 0 past the end.
    fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            Scales::Plain(absmax) => absmax.get(block).copied().unwrap_or_default(),
            Scales::Nested(nested) => nested.scale(block),
        }
    }
}

/// Bytes of `elements` weights in double-quantised NF4: half a byte each, a byte of absmax for a block, and for so many of
/// those an f32.
pub fn double_quantized_bytes(elements: u64) -> u64 {
    let blocks = elements.div_ceil(BLOCK_SIZE as u64);
    elements.div_ceil(2) + blocks + 4 * blocks.div_ceil(NESTED_BLOCK_SIZE as u64)
}

impl NestedScales {
    /// Product and sum are rounded separately, as bitsandbytes does; a fused multiply-add would differ.
    fn scale(&self, block: usize) -> f32 {
        let code = self.codes.get(block).copied().unwrap_or_default();
        let absmax = self.absmax.get(block / self.block_size).copied();
        self.map[usize::from(code)] * absmax.unwrap_or_default() + self.offset
    }
}

impl std::fmt::Debug for Nf4Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nf4Matrix")
            .field("quant_type", &self.quant_type)
            .field("shape", &[self.rows, self.columns])
            .field("block_size", &self.block_size)
            .field("double_quantized", &self.is_double_quantized())
            .field("rounding", &self.rounding)
            .finish()
    }
}

/// rows * columns, refused when it is zero or does not fit.
fn element_count(what: &str, rows: usize, columns: usize) -> Result<usize> {
    rows.checked_mul(columns)
        .filter(|count| *count > 0)
        .ok_or_else(|| Error::shape(what, &[1, 1], &[rows, columns]))
}
