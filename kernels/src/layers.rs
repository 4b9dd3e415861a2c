//! Provides the calls for what stands between a decoder layer's products: RMSNorm, heads and their rotary positions, and SwiGLU,
//! with gradients.
//!
//! Buffers hold f32, bf16 or f16; everything is computed in f32 and rounded once, where it is stored.

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

/// `w x / sqrt(mean(x^2) + eps)`, and a copy of x where `copy` names a buffer for it.
///
/// # Shapes
/// x, out and copy [rows, size], weight `[size]`
///
/// # Errors
/// When there are more rows than a grid has.
pub fn rms_norm(
    x: usize,
    weight: usize,
    (out, copy): (usize, Option<usize>),
    (rows, size): (usize, usize),
    eps: f32,
) -> Result<Call> {
    let name = match copy {
        None => "rms_norm",
        Some(_) => "rms_norm_and_copy",
    };
    let call = Call::new(&LAYERS, name, by_row(rows))?;
    let call = call.floats(x).floats(weight).floats(out);
    let call = copy.into_iter().fold(call, Call::floats);
    Ok(call.size(size).float(eps))
}

/// dL/dx of [`rms_norm`] from dL/dy, added to `before` where that is a buffer.
///
/// # Shapes
/// x, grad, before and out [rows, size], weight `[size]`
///
/// # Errors
/// When there are more rows than a grid has.
pub fn rms_norm_gradient(
    [x, weight, grad]: [usize; 3],
    before: Option<usize>,
    out: usize,
    (rows, size): (usize, usize),
    eps: f32,
) -> Result<Call> {
    let call = Call::new(&LAYERS, "rms_norm_gradient", by_row(rows))?;
    let call = call.floats(x).floats(weight).floats(grad);
    let call = call.floats(before.unwrap_or(grad));
    let call = call.int(before.is_some().into()).floats(out);
    Ok(call.size(size).float(eps))
}

/// What each row adds to dL/dw of [`rms_norm`].
///
/// # Shapes
/// x, grad and out [rows, size]
///
/// # Errors
/// When there are more rows than a grid has.
pub fn rms_norm_terms(
    x: usize,
    grad: usize,
    out: usize,
    (rows, size): (usize, usize),
    eps: f32,
) -> Result<Call> {
    let call = Call::new(&LAYERS, "rms_norm_terms", by_row(rows))?;
    let call = call.floats(x).floats(grad).floats(out);
    Ok(call.size(size).float(eps))
}

/// The sizes of rows of heads, and where their positions are.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Rows in all: whole sequences of `positions` each.
    pub rows: usize,
    /// Rows of the tables.
    pub positions: usize,
    /// Heads of queries in a row.
    pub heads: usize,
    /// Heads of keys, and of values, in a row.
    pub key_heads: usize,
    /// Half of a head's elements.
    pub half: usize,
    /// Whether queries and keys are turned by their positions.
    pub turned: bool,
    /// Cosines and sines, f32 [positions, half].
    pub tables: [usize; 2],
}

impl Heads {
    // A row is a few thousand elements.
    fn sizes(&self, call: Call) -> Call {
        let Self {
            positions,
            heads,
            key_heads,
            half,
            turned,
            ..
        } = *self;
        let call = call.size(positions).int(heads as i32);
        call.int(key_heads as i32)
            .int(half as i32)
            .int(turned.into())
    }

    /// `[x1 cos - x2 sin, x2 cos + x1 sin]` of each of `heads` heads; with `sign` -1 the turn back.
    ///
    /// # Shapes
    /// x and out [rows, heads, 2 half]
    ///
    /// # Errors
    /// When there are more rows than a grid has.
    pub fn rope(&self, heads: usize, x: usize, out: usize, sign: f32) -> Result<Call> {
        let call = Call::new(&LAYERS, "rope", by_row(self.rows))?.floats(x);
        let call = self.tables.into_iter().fold(call, Call::floats).floats(out);
        let call = call.size(self.positions).int(heads as i32);
        Ok(call.int(self.half as i32).float(sign))
    }

    /// Parts rows of products into q, k and v, with their biases added, turned.
    ///
    /// # Shapes
    /// y [rows, (heads + 2 key_heads) 2 half]; to: q [rows, heads, 2 half], k and v [rows, key_heads, 2 half]; biases of q, k and v
    ///
    /// # Errors
    /// When there are more rows than a grid has.
    pub fn split(&self, y: usize, biases: Option<[usize; 3]>, to: [usize; 3]) -> Result<Call> {
        let call = Call::new(&LAYERS, "split_heads", by_row(self.rows))?.floats(y);
        let of = biases.unwrap_or([y; 3]);
        let call = of.into_iter().fold(call, Call::floats);
        let call = call.int(biases.is_some().into());
        let call = self.tables.into_iter().chain(to).fold(call, Call::floats);
        Ok(self.sizes(call))
    }

    /// The way back of [`split`](Self::split): gradients in q, k and v to those in y.
    ///
    /// # Errors
    /// When there are more rows than a grid has.
    pub fn join(&self, grads: [usize; 3], out: usize) -> Result<Call> {
        let call = Call::new(&LAYERS, "join_heads", by_row(self.rows))?;
        let call = grads
            .into_iter()
            .chain(self.tables)
            .fold(call, Call::floats);
        Ok(self.sizes(call.floats(out)))
    }
}

/// `silu(gate) up`.
///
/// # Shapes
/// gate_up [rows, 2 width], gate beside up; out [rows, width]
///
/// # Errors
/// When there are more elements than a grid has threads.
pub fn swiglu(gate_up: usize, out: usize, (rows, width): (usize, usize)) -> Result<Call> {
    let len = rows * width;
    let call = Call::new(&LAYERS, "swiglu", Launch::over(len, THREADS))?;
    Ok(call.floats(gate_up).floats(out).size(width).size(len))
}

/// dL/dgate beside dL/dup of [`swiglu`] from dL/dy.
///
/// # Shapes
/// gate_up and out [rows, 2 width], grad [rows, width]
///
/// # Errors
/// When there are more elements than a grid has threads.
pub fn swiglu_gradient(
    gate_up: usize,
    grad: usize,
    out: usize,
    (rows, width): (usize, usize),
) -> Result<Call> {
    let len = rows * width;
    let call = Call::new(&LAYERS, "swiglu_gradient", Launch::over(len, THREADS))?;
    let call = call.floats(gate_up).floats(grad).floats(out);
    Ok(call.size(width).size(len))
}
