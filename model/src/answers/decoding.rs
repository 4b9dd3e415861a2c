//! Provides how answers are written: their length, and how tokens are chosen.

use crate::Sampling;

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoding {
    /// Where an answer is cut that does not end by itself.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Of the draws; every prompt draws by a number of its own after it.
    pub seed: u64,
}

impl Decoding {
    /// Checks the numbers.
    ///
    /// # Errors
    /// The first that is outside its meaning, by name, with what is allowed.
    pub fn validate(&self) -> Result<(), &'static str> {
        let length = match self.max_new_tokens {
            0 => Err("max_new_tokens: must be at least 1"),
            _ => Ok(()),
        };
        self.sampling.validate().and(length)
    }
}
