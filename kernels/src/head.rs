//! Provides the calls for the rows of a student's head: what a loss needs of each row of logits, the loss, and its gradient.
//!
//! Of a row, `width` kept ids and a label stand by themselves; everything but the kept ids is its tail. `rate` is `1 / tau`.

use candle_core::{DType, Result, bail};

use crate::{Call, HEAD, Launch, SHARED_BYTES_MAX};

/// Threads of a block.
const THREADS: usize = 256;
/// Threads of a warp, which makes a row's factors.
const WARP: usize = 32;
/// Logits that a thread turns into their gradient.
const LOGITS_A_THREAD: usize = 4;
/// Numbers that are said of a row's tail.
const TAIL_NUMBERS: usize = 3;
/// Numbers that a loss says of a row, beside its kept ids' p and ln p.
pub const TERM_NUMBERS: usize = 9;
/// Numbers that come of a row's loss.
pub const VALUE_NUMBERS: usize = 5;
/// Logits of a row at most: a bit for each lies in the shared memory of a block, beside what its warps join.
pub const VOCAB_MAX: usize = 8 * SHARED_BYTES_MAX - 32 * WARP;

/// Sizes of a chunk of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadRows {
    /// Rows.
    pub rows: usize,
    /// V.
    pub vocab: usize,
    /// Elements from one row of logits to the next, V or more.
    pub stride: usize,
    /// Kept ids a row; they may repeat.
    pub width: usize,
    /// `1 / tau`.
    pub rate: f32,
}

impl HeadRows {
    fn sizes(&self, call: Call) -> Call {
        let call = call.size(self.vocab).size(self.stride);
        call.size(self.width).float(self.rate)
    }

    /// Numbers that are said of all rows.
    pub fn parts_len(&self) -> usize {
        self.rows * (self.width + 1 + TAIL_NUMBERS)
    }

    /// What a loss needs of each row.
    ///
    /// # Shapes
    /// z [rows, stride]; places [rows, width + 1] u32, the label last; out [rows, width + 4] f32: z at the places, then of the tail
    /// the largest logit (the lowest finite number where there is none) and the sums of `exp(z - largest)` and
    /// `exp((z - largest) rate)`
    ///
    /// # Errors
    /// When V is more than [`VOCAB_MAX`], or there are more rows than a grid has.
    pub fn parts(&self, z: usize, places: usize, out: usize) -> Result<Call> {
        let launch = Launch {
            grid: [self.rows, 1, 1],
            block: THREADS,
            shared: size_of::<u32>() * (WARP + self.vocab.div_ceil(32)),
        };
        let call = Call::new(&HEAD, "head_parts", launch)?.floats(z);
        let call = call.buffer(places, DType::U32).buffer(out, DType::F32);
        Ok(self.sizes(call))
    }

    /// The loss of each row, and what its gradient is made from, written over the parts.
    ///
    /// # Shapes
    /// parts as [`parts`](Self::parts) writes them; then they are, of each row, the kept ids' own gradient, what the label gets
    /// more, the largest logit, and the factors own and tail, where own is all and tail is not read at `rate` 1. terms [rows, 9 + 2
    /// width] f64: how many of the places a teacher kept (0: it says nothing of this row), the weights of cross-entropy, of forward
    /// KL, reverse KL and JSD (below 0: not asked for) and of logsumexp(z), whether what p leaves of 1 is one bucket's, tau, beta; p
    /// of the kept ids, and ln p. values [rows, 5] f64: logsumexp(z), cross-entropy, `tau^2` times each divergence
    ///
    /// # Errors
    /// When there are more rows than a grid has.
    pub fn factors(&self, parts: usize, terms: usize, values: usize) -> Result<Call> {
        let launch = Launch {
            grid: [self.rows, 1, 1],
            block: WARP,
            shared: 0,
        };
        let call = Call::new(&HEAD, "head_factors", launch)?;
        let call = call.buffer(parts, DType::F32).buffer(terms, DType::F64);
        let call = call.buffer(values, DType::F64).size(self.width);
        Ok(call.float(self.rate))
    }

    /// `own exp(z - largest) + tail exp((z - largest) rate)`, the kept ids' own gradient in its place, the label's added.
    ///
    /// # Shapes
    /// z and places as for [`parts`](Self::parts); factors as [`factors`](Self::factors) writes them; gradient [rows, stride] of any
    /// floats, 0 from column V on
    ///
    /// # Errors
    /// When there are more rows than a grid has.
    pub fn gradient(
        &self,
        (z, places, factors): (usize, usize, usize),
        gradient: usize,
    ) -> Result<Call> {
        if self.vocab == 0 {
            bail!("rows of no logits have no gradient");
        }
        let launch = Launch {
            grid: [
                self.stride.div_ceil(THREADS * LOGITS_A_THREAD),
                self.rows,
                1,
            ],
            block: THREADS,
            shared: 0,
        };
        let call = Call::new(&HEAD, "head_gradient", launch)?.floats(z);
        let call = call.buffer(places, DType::U32).buffer(factors, DType::F32);
        Ok(self.sizes(call.floats(gradient)))
    }
}
