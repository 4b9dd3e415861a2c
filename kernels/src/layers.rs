//! Provides the calls for what stands between a decoder layer's products: RMSNorm, rotary positions and SwiGLU, with gradients.
//!
//! Buffers hold f32, bf16 or f16; sums and functions are computed in f32.

use candle_core::Result;

use crate::{Call, LAYERS, Launch};

/// Threads of a block.
const THREADS: usize = 256;

/// One block for each row, with room for the joins of its warps.
fn by_row(rows: usize) -> Launch {
    Launch {
        grid: [rows, 1, 1],
        block: THREADS,
        shared: 32 * size_of::<f32>(),
    }
}

/// `w * round(x / sqrt(mean(x^2) + eps))`
///
/// # Shapes
/// x and out [rows, size], weight [size]
///
/// # Errors
/// When there are more rows than a grid has.
pub fn rms_norm(
    x: usize,
    weight: usize,
    out: usize,
    (rows, size): (usize, usize),
    eps: f32,
) -> Result<Call> {
    let call = Call::new(&LAYERS, "rms_norm", by_row(rows))?;
    let call = call.floats(x).floats(weight).floats(out);
    Ok(call.size(size).float(eps))
}

/// dL/dx of [`rms_norm`] from dL/dy.
///
/// # Shapes
/// x, grad and out [rows, size], weight [size]
///
/// # Errors
/// When there are more rows than a grid has.
pub fn rms_norm_gradient(
    x: usize,
    weight: usize,
    grad: usize,
    out: usize,
    (rows, size): (usize, usize),
    eps: f32,
) -> Result<Call> {
    let call = Call::new(&LAYERS, "rms_norm_gradient", by_row(rows))?;
    let call = call.floats(x).floats(weight).floats(grad).floats(out);
    Ok(call.size(size).float(eps))
}

/// The sizes of what [`rope`] turns.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Rows in all: whole sequences of `positions` each.
    pub rows: usize,
    /// Rows of the tables.
    pub positions: usize,
    /// Heads of a row.
    pub heads: usize,
    /// Half of a head's elements.
    pub half: usize,
}

/// `[x1 cos - x2 sin, x2 cos + x1 sin]` of every head, each product rounded to out's type; with `sign` -1 the turn back.
///
/// # Shapes
/// x and out [rows, heads, 2 half], cos and sin [positions, half]
///
/// # Errors
/// When there are more rows than a grid has.
pub fn rope(
    x: usize,
    (cos, sin): (usize, usize),
    out: usize,
    heads: Heads,
    sign: f32,
) -> Result<Call> {
    let call = Call::new(&LAYERS, "rope", by_row(heads.rows))?;
    let call = call.floats(x).floats(cos).floats(sin).floats(out);
    // A row is a few thousand elements.
    let (count, half) = (heads.heads as i32, heads.half as i32);
    Ok(call.size(heads.positions).int(count).int(half).float(sign))
}

/// `round(silu(gate)) * up`
///
/// # Shapes
/// gate, up and out [len]
///
/// # Errors
/// When there are more elements than a grid has threads.
pub fn swiglu(gate: usize, up: usize, out: usize, len: usize) -> Result<Call> {
    let call = Call::new(&LAYERS, "swiglu", Launch::over(len, THREADS))?;
    Ok(call.floats(gate).floats(up).floats(out).size(len))
}

/// dL/dgate and dL/dup of [`swiglu`] from dL/dy, one after the other.
///
/// # Shapes
/// gate, up and grad [len], out [2, len]
///
/// # Errors
/// When there are more elements than a grid has threads.
pub fn swiglu_gradient(
    gate: usize,
    up: usize,
    grad: usize,
    out: usize,
    len: usize,
) -> Result<Call> {
    let call = Call::new(&LAYERS, "swiglu_gradient", Launch::over(len, THREADS))?;
    let call = call.floats(gate).floats(up).floats(grad);
    Ok(call.floats(out).size(len))
}
