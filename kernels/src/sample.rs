//! Provides the call for the next token after rows of logits, drawn where they are.

use candle_core::{DType, Result, bail};

use crate::{Call, Launch, SELECT};

/// Threads of a block.
const THREADS: usize = 256;
/// Sums that a thread keeps.
const DIGITS: usize = 16;
/// Threads that exchange values with each other.
const WARP: usize = 32;

/// What a kernel says of a row that no token can be chosen by.
pub const NOTHING: u32 = u32::MAX;

/// Rows of logits, and what of them is drawn from: what each of these leaves, in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Rows.
    pub rows: usize,
    /// V.
    pub vocab: usize,
    /// Elements from one row to the next: at least V. What is beyond V is not looked at.
    pub stride: usize,
    /// Divides the logits; not 0.
    pub temperature: f32,
    /// So many of the largest, and those as large as the last of them; 0 is all.
    pub top_k: usize,
    /// Without the least likely that have so much of the mass together, in multiples of 2^-53; of equally likely ones without those
    /// with larger ids. One stays at least.
    pub removed: i64,
    /// Without those whose logit over the temperature, less the largest, is below this.
    pub reach: f32,
}

impl Sample {
    /// For each row the first id up to which the softmax of what is drawn from has more than the row's uniform; of a row that holds NaN,
    /// or whose largest logit over the temperature is not finite, [`NOTHING`].
    ///
    /// # Shapes
    /// logits `[rows, stride]`, any float type; uniforms `[rows]` i64, multiples of 2^-53 in [0, 1); ids `[rows]` u32
    ///
    /// # Errors
    /// Rows that hold no logits, or more than ids can number.
    pub fn call(&self, logits: usize, uniforms: usize, ids: usize) -> Result<Call> {
        let numbered = u32::try_from(self.vocab).is_ok_and(|vocab| (1..NOTHING).contains(&vocab));
        if !numbered || self.stride < self.vocab {
            bail!("sample: {} logits in rows of {}", self.vocab, self.stride);
        }
        let launch = Launch {
            grid: [self.rows, 1, 1],
            block: THREADS,
            shared: Self::shared(),
        };
        let call = Call::new(&SELECT, "sample_rows", launch)?.floats(logits);
        let call = call.buffer(uniforms, DType::I64).buffer(ids, DType::U32);
        let call = call.size(self.vocab).size(self.stride);
        let call = call.size(self.top_k).long(self.removed);
        let call = call.float(self.temperature).float(self.reach);
        Ok(call.float(self.unit()))
    }

    fn shared() -> usize {
        size_of::<u64>() * (WARP + DIGITS + DIGITS * THREADS) + size_of::<f32>() * WARP
    }

    /// The largest power of two of which V are less than 2^63, and so at least 2^31.
    fn unit(&self) -> f32 {
        let bits = usize::BITS - self.vocab.leading_zeros();
        (1u64 << (63 - bits)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(vocab: usize, stride: usize) -> Sample {
        Sample {
            rows: 1,
            vocab,
            stride,
            temperature: 1.0,
            top_k: 0,
            removed: 0,
            reach: 0.0,
        }
    }

    #[test]
    fn rows_that_no_id_numbers_are_refused() {
        assert!(sample(5, 8).call(0, 1, 2).is_ok());
        for (vocab, stride) in [(0, 0), (9, 8), (1 << 32, 1 << 32)] {
            let error = sample(vocab, stride).call(0, 1, 2).unwrap_err();
            assert!(error.to_string().contains("logits in rows of"), "{error}");
        }
    }

    #[test]
    fn a_row_s_mass_is_a_number_of_63_bits_and_no_smaller() {
        for vocab in [1, 2, 151_936, 1 << 18, (1 << 32) - 2] {
            let mass = f64::from(sample(vocab, vocab).unit()) * vocab as f64;
            let bits = mass.log2();
            assert!((62.0..63.0).contains(&bits), "{vocab}: {bits}");
        }
    }
}
