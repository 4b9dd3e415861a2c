//! Provides the arguments of a launch.

use candle_core::DType;

/// A buffer of the run, or neighbouring elements of one. Buffers are named by their index among the buffers of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub(crate) buffer: usize,
    /// First element and how many; without it all.
    pub(crate) elements: Option<(usize, usize)>,
}

impl Part {
    /// The whole buffer.
    pub fn whole(buffer: usize) -> Self {
        Self {
            buffer,
            elements: None,
        }
    }

    /// `len` elements from `start` on.
    pub fn of(buffer: usize, start: usize, len: usize) -> Self {
        Self {
            buffer,
            elements: Some((start, len)),
        }
    }
}

/// One argument.
#[derive(Debug, Clone)]
#[cfg_attr(
    not(any(feature = "cuda", feature = "emulator")),
    expect(dead_code, reason = "nothing launches")
)]
pub(crate) enum Argument {
    Floats(usize),
    Buffer(usize, DType),
    FloatsTable(Vec<Part>),
    Table(Vec<Part>, DType),
    Long(i64),
    Int(i32),
    Float(f32),
}
