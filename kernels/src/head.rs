//! Provides the calls for the rows of a student's head: what a loss needs of each row of logits, and their gradient.
//!
//! Of a row, `width` kept ids and a label stand by themselves; everything but the kept ids is its tail. `rate` is `1 / tau`.

use candle_core::{DType, Result, bail};

use crate::{Call, HEAD, Launch, SHARED_BYTES_MAX};

/// Threads of a block.
const THREADS: usize = 256;
/// Logits that a thread turns into their gradient.
const LOGITS_A_THREAD: usize = 4;
/// Numbers that are said of a row's tail.
pub const TAIL_NUMBERS: usize = 3;

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
    /// Whether a bit for every logit fits the shared memory of a block: up to 392,000.
    pub fn fits(&self) -> bool {
        self.shared() <= SHARED_BYTES_MAX
    }

    fn shared(&self) -> usize {
        size_of::<u32>() * (32 + self.vocab.div_ceil(32))
    }

    fn sizes(&self, call: Call) -> Call {
        let call = call.size(self.vocab).size(self.stride);
        call.size(self.width).float(self.rate)
    }

    /// What a loss needs of each row.
    ///
    /// # Shapes
    /// z [rows, stride]; places [rows, width + 1] u32, the label last; out [rows, width + 4] f32: z at the places, then of the tail
    /// the largest logit (the lowest finite number where there is none) and the sums of `exp(z - largest)` and
    /// `exp((z - largest) rate)`
    ///
    /// # Errors
    /// When the rows do not [fit](Self::fits), or are more than a grid has.
    pub fn parts(&self, z: usize, places: usize, out: usize) -> Result<Call> {
        let launch = Launch {
            grid: [self.rows, 1, 1],
            block: THREADS,
            shared: self.shared(),
        };
        let call = Call::new(&HEAD, "head_parts", launch)?.floats(z);
        let call = call.buffer(places, DType::U32).buffer(out, DType::F32);
        Ok(self.sizes(call))
    }

    /// `own exp(z - largest) + tail exp((z - largest) rate)`, the kept ids' own gradient in its place, the label's added.
    ///
    /// # Shapes
    /// z, places and parts as for [`parts`](Self::parts); factors [rows, width + 3] f32: of the kept ids, of the label, own,
    /// tail, where `own` is all and tail is not read at `rate` 1; gradient [rows, stride] of any floats, 0 from column V on
    ///
    /// # Errors
    /// When there are more rows than a grid has.
    pub fn gradient(
        &self,
        (z, places, parts): (usize, usize, usize),
        factors: usize,
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
        let call = call.buffer(places, DType::U32).buffer(parts, DType::F32);
        let call = call.buffer(factors, DType::F32).floats(gradient);
        Ok(self.sizes(call))
    }
}
