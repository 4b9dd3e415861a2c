//! Provides the range coder: asymmetric numeral systems with a 64-bit state and 32-bit words.
//!
//! J. Duda, "Asymmetric numeral systems" (2013), arXiv:1311.2540; section 2 has the range variant.

use super::{Coder, PROBABILITY_BITS, Slice};
use crate::{
    Error, Result,
    numbers::{low_half, low_word},
};

/// The state is at least this, and below 2^32 times this, between two symbols. The coder starts and ends with it.
const STATE_MIN: u64 = 1 << 31;
/// Most bits that are coded without a model at once.
const RAW_BITS_MAX: u32 = PROBABILITY_BITS;

/// Collects slices; what comes last is coded first, so that a decoder reads forwards.
#[derive(Debug, Default)]
pub(in crate::frame) struct Encoder {
    slices: Vec<Slice>,
}

impl Encoder {
    /// The bytes: the decoder's first state (8), then its words (4 each) in the order it reads them.
    pub fn finish(self) -> Vec<u8> {
        let mut state = STATE_MIN;
        let mut words = Vec::with_capacity(self.slices.len() / 4);
        for slice in self.slices.iter().rev() {
            let width = u64::from(slice.width);
            if state >= (STATE_MIN >> PROBABILITY_BITS << 32) * width {
                words.push(low_word(state));
                state >>= 32;
            }
            state = ((state / width) << PROBABILITY_BITS) + state % width + u64::from(slice.start);
        }
        let mut out = Vec::with_capacity(8 + 4 * words.len());
        out.extend(state.to_le_bytes());
        out.extend(words.iter().rev().flat_map(|word| word.to_le_bytes()));
        out
    }
}

impl Coder for Encoder {
    #[inline]
    fn code(
        &mut self,
        value: impl FnOnce() -> u32,
        slice: impl FnOnce(u32) -> Slice,
        _: impl FnOnce(u16) -> (u32, Slice),
    ) -> u32 {
        let value = value();
        self.slices.push(slice(value));
        value
    }

    #[inline]
    fn raw(&mut self, bits: u32, value: impl FnOnce() -> u32) -> u32 {
        let value = value() & 1u32.checked_shl(bits).map_or(u32::MAX, |end| end - 1);
        let (mut rest, mut bits) = (value, bits);
        while bits > 0 {
            let part = bits.min(RAW_BITS_MAX);
            let shift = PROBABILITY_BITS - part;
            let low = rest & ((1 << part) - 1);
            self.slices.push(Slice {
                start: low_half(low << shift),
                width: 1 << shift,
            });
            rest >>= part;
            bits -= part;
        }
        value
    }
}

/// Reads what an [`Encoder`] wrote.
#[derive(Debug)]
pub(in crate::frame) struct Decoder<'a> {
    state: u64,
    words: std::slice::Iter<'a, [u8; 4]>,
    /// Words that were asked for after the last one.
    missing: u32,
}

impl<'a> Decoder<'a> {
    /// # Errors
    /// `Entropy` where the bytes cannot be a stream.
    pub fn new(bytes: &'a [u8], index: u64) -> Result<Self> {
        let bad = || Error::Entropy {
            index,
            reason: "a stream has a state and whole words",
        };
        let (state, words) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
        let (words, rest) = words.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            state: u64::from_le_bytes(*state),
            words: words.iter(),
            missing: 0,
        })
    }

    /// Checks that no more was read than there is; what came since the last check is meaningless otherwise.
    ///
    /// # Errors
    /// `Entropy`.
    pub fn check(&self, index: u64) -> Result<()> {
        match self.missing {
            0 => Ok(()),
            _ => Err(Error::Entropy {
                index,
                reason: "the stream ends early",
            }),
        }
    }

    /// Checks that everything was read and led to where an encoder starts.
    ///
    /// # Errors
    /// `Entropy`.
    pub fn finish(self, index: u64) -> Result<()> {
        self.check(index)?;
        if self.state == STATE_MIN && self.words.len() == 0 {
            return Ok(());
        }
        Err(Error::Entropy {
            index,
            reason: "the stream does not end where it must",
        })
    }

    #[inline]
    fn advance(&mut self, slice: Slice) {
        let point = self.state & ((1 << PROBABILITY_BITS) - 1);
        // A forged first state may be any number: nothing here may overflow.
        self.state = (self.state >> PROBABILITY_BITS)
            .wrapping_mul(slice.width.into())
            .wrapping_add(point)
            .wrapping_sub(slice.start.into());
        if self.state < STATE_MIN {
            let word = self.words.next().copied().unwrap_or_else(|| {
                self.missing = self.missing.saturating_add(1);
                [0; 4]
            });
            self.state = self.state << 32 | u64::from(u32::from_le_bytes(word));
        }
    }

    #[inline]
    fn point(&self) -> u16 {
        low_half(low_word(self.state)) & ((1 << PROBABILITY_BITS) - 1)
    }
}

impl Coder for Decoder<'_> {
    #[inline]
    fn code(
        &mut self,
        _: impl FnOnce() -> u32,
        _: impl FnOnce(u32) -> Slice,
        find: impl FnOnce(u16) -> (u32, Slice),
    ) -> u32 {
        let (value, slice) = find(self.point());
        self.advance(slice);
        value
    }

    #[inline]
    fn raw(&mut self, bits: u32, _: impl FnOnce() -> u32) -> u32 {
        let (mut value, mut done) = (0, 0);
        while done < bits {
            let part = (bits - done).min(RAW_BITS_MAX);
            let shift = PROBABILITY_BITS - part;
            let low = self.point() >> shift;
            self.advance(Slice {
                start: low << shift,
                width: 1 << shift,
            });
            value |= u32::from(low) << done;
            done += part;
        }
        value
    }
}
