//! Provides the calls that unpack a 4-bit matrix: `out[i] = round(table[code_i] * scale[i / block_size])`.

use candle_core::{DType, Result};

use crate::call::float_code;
use crate::{Call, Launch, NF4};

/// Threads of a block: eight warps, each of which unpacks one block of elements.
const THREADS: usize = 256;
const WARP: usize = 32;

/// A matrix in bitsandbytes' layout, its parts named by their buffers.
#[derive(Debug, Clone, Copy)]
pub struct Packed {
    /// u8 `[len / 2, rounded up]`: two codes a byte, the earlier in the high half.
    pub codes: usize,
    /// f32 `[16]`: what codes stand for.
    pub table: usize,
    /// What elements are multiplied with.
    pub scales: Scales,
    /// Elements that share a scale: even.
    pub block_size: usize,
    /// The float type that elements are rounded to, whatever they are stored as.
    pub rounding: DType,
    /// Elements.
    pub len: usize,
}

/// One scale for each block of elements.
#[derive(Debug, Clone, Copy)]
pub enum Scales {
    /// f32.
    Plain(usize),
    /// `map[code] * absmax[block / block_size] + offset`.
    Nested {
        /// u8, one for each block of elements.
        codes: usize,
        /// f32 `[256]`.
        map: usize,
        /// f32, one for each `block_size` codes.
        absmax: usize,
        /// Codes that share an absmax.
        block_size: usize,
        /// Added to every scale.
        offset: f32,
    },
}

/// The whole matrix into `out`, f32, bf16 or f16 `[len]`.
///
/// # Errors
/// When `rounding` is no float type of 16 or 32 bits, or the matrix is too large for a grid.
pub fn dequantize(matrix: &Packed, out: usize) -> Result<Call> {
    let blocks = matrix.len.div_ceil(matrix.block_size.max(1));
    let launch = Launch::over(blocks * WARP, THREADS);
    let call = match matrix.scales {
        Scales::Plain(absmax) => Call::new(&NF4, "dequantize_plain", launch)?
            .buffer(matrix.codes, DType::U8)
            .buffer(matrix.table, DType::F32)
            .buffer(absmax, DType::F32),
        Scales::Nested {
            codes,
            map,
            absmax,
            block_size,
            offset,
        } => Call::new(&NF4, "dequantize_nested", launch)?
            .buffer(matrix.codes, DType::U8)
            .buffer(matrix.table, DType::F32)
            .buffer(codes, DType::U8)
            .buffer(map, DType::F32)
            .buffer(absmax, DType::F32)
            .size(block_size)
            .float(offset),
    };
    let rounding = float_code(matrix.rounding)?;
    let call = call.size(matrix.block_size).int(rounding);
    Ok(call.size(matrix.len).floats(out))
}
