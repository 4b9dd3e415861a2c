/*! Provides adaptive entropy coding: models that learn as they code, and the range coder (rANS) under them.

```text
 numbers, flags ──> models (Bit, Nibble, Number) ──> Coder: Encoder ──> words
                             the same code       <──        Decoder <──
```

What is coded and how it is modelled is written once, generic over [`Coder`]: an encoder takes the values from the
closures it is given and hands them back, a decoder never calls the closures and hands back what it reads. All arithmetic
is on integers, so a stream has one meaning on every machine.
*/

mod models;
mod range;

pub(super) use models::{Bit, Number, bit_length, fold, unfold};
pub(super) use range::{Decoder, Encoder};

/// Bits of a probability: all are multiples of 2^-15.
pub(super) const PROBABILITY_BITS: u32 = 15;

/// A slice of the unit interval, in units of 2^-15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub start: u16,
    /// At least 1; `start + width` is at most 2^15.
    pub width: u16,
}

/// One direction of coding.
pub(super) trait Coder {
    /// Codes one of several outcomes. `slice` gives the slice of a value (encoder) and `find` the value whose slice holds a
    /// point, with that slice (decoder).
    fn code(
        &mut self,
        value: impl FnOnce() -> u32,
        slice: impl FnOnce(u32) -> Slice,
        find: impl FnOnce(u16) -> (u32, Slice),
    ) -> u32;

    /// Codes the lowest `bits` bits of a value without a model.
    fn raw(&mut self, bits: u32, value: impl FnOnce() -> u32) -> u32;
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests;
