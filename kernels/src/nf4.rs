//! Provides the calls that unpack a 4-bit matrix: `out[i] = round(table[code_i] * scale[i / block_size])`.

use candle_core::{DType, Result, bail};

use crate::call::float_code;
use crate::{Call, Launch, NF4};

/// Threads of a block: eight warps, each of which unpacks one block of elements.
const THREADS: usize = 256;
const WARP: usize = 32;
/// Elements that a thread unpacks where several matrices are unpacked together, and how many those may be.
const EIGHT: usize = 8;
const TOGETHER_MAX: usize = 3;

/// A matrix in bitsandbytes' layout, its parts named by their buffers.
#[derive(Debug, Clone, Copy)]
pub struct Packed {
    /// u8 `[len / 2, rounded up]`: two codes a byte, the earlier in the high half.
    pub codes: usize,
    /// f32 `[16]`: what codes stand for, the same for all matrices of a `kind`.
    pub table: usize,
    /// Matrices with the same number have the same table.
    pub kind: u8,
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

/// Matrices of one width, one below the other, into `out`: f32, bf16 or f16 [the sum of their lengths].
///
/// # Errors
/// When a `rounding` is no float type of 16 or 32 bits, a matrix is too large for a grid, or its rows would begin inside a pair.
pub fn dequantize(matrices: &[Packed], out: usize) -> Result<Vec<Call>> {
    if let Some(call) = together(matrices, out)? {
        return Ok(vec![call]);
    }
    let mut first = 0;
    let mut calls = Vec::with_capacity(matrices.len());
    for matrix in matrices {
        if first % 2 != 0 {
            bail!("a 4-bit matrix below one with an odd number of elements");
        }
        calls.push(alone(matrix, out, first)?);
        first += matrix.len;
    }
    Ok(calls)
}

/// Up to three matrices in one launch, where they are alike.
fn together(matrices: &[Packed], out: usize) -> Result<Option<Call>> {
    let [first, ..] = matrices else {
        return Ok(None);
    };
    let nested = |matrix: &Packed| match matrix.scales {
        Scales::Nested { block_size, .. } => Some(block_size),
        Scales::Plain(_) => None,
    };
    let alike = matrices.iter().all(|matrix| {
        matrix.len.is_multiple_of(EIGHT)
            && matrix.block_size == first.block_size
            && matrix.rounding == first.rounding
            && matrix.kind == first.kind
            && nested(matrix) == nested(first)
    });
    let Some(nested_size) = nested(first) else {
        return Ok(None);
    };
    if !alike || !first.block_size.is_multiple_of(EIGHT) || matrices.len() > TOGETHER_MAX {
        return Ok(None);
    }
    let len: usize = matrices.iter().map(|matrix| matrix.len).sum();
    let launch = Launch {
        shared: 16 * size_of::<f32>(),
        ..Launch::over(len / EIGHT, THREADS)
    };
    let mut call = Call::new(&NF4, "dequantize_three", launch)?;
    for index in 0..TOGETHER_MAX {
        // One that is not there is named by the first one's buffers, and has no elements.
        let (matrix, len) = match matrices.get(index) {
            Some(matrix) => (matrix, matrix.len),
            None => (first, 0),
        };
        let Scales::Nested {
            codes,
            map,
            absmax,
            offset,
            ..
        } = matrix.scales
        else {
            return Ok(None);
        };
        call = call
            .buffer(matrix.codes, DType::U8)
            .buffer(codes, DType::U8)
            .buffer(map, DType::F32)
            .buffer(absmax, DType::F32)
            .float(offset)
            .size(len);
    }
    let call = call.buffer(first.table, DType::F32).size(first.block_size);
    let call = call.size(nested_size).int(float_code(first.rounding)?);
    Ok(Some(call.floats(out)))
}

fn alone(matrix: &Packed, out: usize, first: usize) -> Result<Call> {
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
    Ok(call.size(matrix.len).floats(out).size(first))
}
