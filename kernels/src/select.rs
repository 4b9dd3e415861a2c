//! Provides the calls for what is kept of rows of logits: the largest entries, statistics of the whole row, and draws.
//!
//! A row is read once; the few entries that may be among the largest, and the parts of 1024 that a draw falls into, a second
//! time, most often from the cache.

use candle_core::{DType, Result, bail};

use crate::{Call, Launch, SELECT, SHARED_BYTES_MAX};

/// Entries of a part of a row.
const PART: usize = 1024;
/// Groups of a part, whose largest entries bound the K-th largest.
const GROUPS: usize = 8;
/// Entries that are chosen from in shared memory.
const FEW: usize = 1024;
/// Bins of a radix pass.
const BINS: usize = 256;
/// Threads of a block.
const THREADS: usize = 256;

/// Sizes of a selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    /// Rows of logits.
    pub rows: usize,
    /// V.
    pub vocab: usize,
    /// Elements from one row to the next: at least V. What is beyond V is not looked at.
    pub stride: usize,
    /// K; 0 for none.
    pub top_k: usize,
    /// T, of which sums of exponentials are wanted.
    pub temperatures: usize,
    /// Which of them is 1, where masses of parts are wanted: draws are made from them.
    pub plain: Option<usize>,
    /// Draws of a row; 0 for none.
    pub draws: usize,
}

/// Indices of the buffers of a selection.
#[derive(Debug, Clone, Copy)]
pub struct SelectionBuffers {
    /// Logits [rows, stride], any float type.
    pub logits: usize,
    /// `1 / tau` `[T]`, f32.
    pub rates: usize,
    /// [rows, 3 + T] f32: the largest logit, NaN where one is not finite; mean; standard deviation; sums of `exp((y - max) / tau)`.
    pub statistics: usize,
    /// Ids of the K largest [rows, K], u32, ascending; of equal ones the lower ids.
    pub ids: usize,
    /// Their logits [rows, K], f32.
    pub values: usize,
    /// Sums of `exp(y - max)` over parts [rows, parts], f32.
    pub masses: usize,
}

impl Selection {
    /// Parts of a row.
    pub fn parts(&self) -> usize {
        self.vocab.div_ceil(PART)
    }

    /// Numbers of a row's statistics.
    pub fn width(&self) -> usize {
        3 + self.temperatures
    }

    /// Types and lengths of statistics, ids, values and masses.
    pub fn outputs(&self) -> [(DType, usize); 4] {
        let masses = self.plain.map_or(0, |_| self.parts());
        [
            (DType::F32, self.rows * self.width()),
            (DType::U32, self.rows * self.top_k),
            (DType::F32, self.rows * self.top_k),
            (DType::F32, self.rows * masses),
        ]
    }

    /// Whether what is known of a row's parts fits the shared memory of a block: up to 400,000 logits at four temperatures.
    pub fn fits(&self) -> bool {
        self.shared().max(self.draw_shared()) <= SHARED_BYTES_MAX
    }

    fn shared(&self) -> usize {
        let of_block = 2 * 32 + 2 + BINS + 2 * FEW;
        let of_part = 4 + self.temperatures + 2 * GROUPS;
        size_of::<f32>() * (of_block + self.parts() * of_part)
    }

    fn draw_shared(&self) -> usize {
        size_of::<f64>() * (2 * self.parts() + 3)
    }

    fn by_row(&self, shared: usize) -> Launch {
        Launch {
            grid: [self.rows, 1, 1],
            block: THREADS,
            shared,
        }
    }

    /// The K largest entries and the statistics of every row.
    ///
    /// # Errors
    /// When K is more than V, or the row does not [fit](Self::fits).
    pub fn select(&self, at: SelectionBuffers) -> Result<Call> {
        if self.top_k > self.vocab || self.vocab == 0 || self.stride < self.vocab {
            bail!(
                "select: the {} largest of {} in rows of {}",
                self.top_k,
                self.vocab,
                self.stride
            );
        }
        let call = Call::new(&SELECT, "select_rows", self.by_row(self.shared()))?;
        let call = call.floats(at.logits).buffer(at.rates, DType::F32);
        let call = call
            .buffer(at.statistics, DType::F32)
            .buffer(at.ids, DType::U32);
        let call = call
            .buffer(at.values, DType::F32)
            .buffer(at.masses, DType::F32);
        let plain = self.plain.map_or(-1, |plain| plain as i64);
        let call = call.size(self.vocab).size(self.stride);
        Ok(call.size(self.top_k).long(plain))
    }

    /// For each uniform an id from the softmax of its row without the K largest, and its logit; 2^32 - 1 where they leave too
    /// little to draw from.
    ///
    /// # Shapes
    /// uniforms [rows, draws] i64, multiples of 2^-53 in [0, 1), ascending in a row; ids and values [rows, draws] u32 and f32
    ///
    /// # Errors
    /// When the masses of parts were not asked for, or the row does not [fit](Self::fits).
    pub fn draw(
        &self,
        at: SelectionBuffers,
        uniforms: usize,
        (ids, values): (usize, usize),
    ) -> Result<Call> {
        if self.plain.is_none() {
            bail!("draws need the masses of parts at temperature 1");
        }
        let call = Call::new(&SELECT, "draw_rows", self.by_row(self.draw_shared()))?;
        let call = call.floats(at.logits).buffer(at.statistics, DType::F32);
        let call = call
            .buffer(at.masses, DType::F32)
            .buffer(at.ids, DType::U32);
        let call = call.buffer(uniforms, DType::I64);
        let call = call.buffer(ids, DType::U32).buffer(values, DType::F32);
        let call = call.size(self.vocab).size(self.stride);
        Ok(call.size(self.top_k).size(self.draws).size(self.width()))
    }
}
