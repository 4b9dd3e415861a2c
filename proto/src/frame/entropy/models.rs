//! Provides models of flags, of sixteen symbols and of whole numbers, each of which learns from what it codes.

use super::{Coder, PROBABILITY_BITS, Slice};
use crate::numbers::low_half;

const ONE: u16 = 1 << PROBABILITY_BITS;

/// A flag.
#[derive(Clone, Copy, Debug)]
pub(in crate::frame) struct Bit {
    /// Probability of `true`, in units of 2^-16.
    probability: u16,
    /// Flags seen, up to the limit.
    seen: u8,
}

/// Flags after which a [`Bit`] forgets as fast as it learns.
const BIT_MEMORY: u8 = 250;

impl Bit {
    /// A flag that is expected to be true `numerator` in 256 times.
    pub const fn new(numerator: u8) -> Self {
        Self {
            probability: (numerator as u16) << 8 | 0x80,
            seen: 0,
        }
    }

    #[inline]
    pub fn code<C: Coder>(&mut self, coder: &mut C, value: impl FnOnce() -> bool) -> bool {
        let one = (self.probability >> 1).clamp(1, ONE - 1);
        let slice = |value: u32| match value {
            0 => Slice {
                start: one,
                width: ONE - one,
            },
            _ => Slice {
                start: 0,
                width: one,
            },
        };
        let value = coder.code(
            || value().into(),
            slice,
            |point| {
                let value = u32::from(point < one);
                (value, slice(value))
            },
        ) != 0;
        self.learn(value);
        value
    }

    #[inline]
    fn learn(&mut self, value: bool) {
        // The mean of all flags so far, the first guess weighing as much as 1.5 of them.
        let weight = i32::from(
            RECIPROCALS
                .get(usize::from(self.seen))
                .copied()
                .unwrap_or(256),
        );
        let target = if value { 0xffff } else { 0 };
        let probability = i32::from(self.probability);
        let moved = probability + (((target - probability) * weight) >> 16);
        self.probability = low_half(moved.cast_unsigned());
        self.seen = (self.seen + 1).min(BIT_MEMORY);
    }
}

/// 2^16 / (n + 2.5).
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const RECIPROCALS: [u16; BIT_MEMORY as usize + 1] = {
    let mut table = [0; BIT_MEMORY as usize + 1];
    let mut n = 0;
    while n <= BIT_MEMORY as u32 {
        table[n as usize] = low_half((1 << 17) / (2 * n + 5));
        n += 1;
    }
    table
};

const SYMBOLS: usize = 16;

/// One of sixteen symbols.
#[derive(Clone, Copy, Debug)]
struct Nibble {
    /// `cumulative[s]`: probability of a symbol below s, in units of 2^-15; strictly increasing from 0. The last is 2^15,
    /// which is `i16::MIN` here.
    cumulative: [i16; SYMBOLS + 1],
    /// Symbols seen, up to the limit.
    seen: u8,
}

/// Symbols after which a [`Nibble`] forgets as fast as it learns.
const NIBBLE_MEMORY: u8 = 48;

/// A symbol moves the probabilities by 2^-shift of their distance: fast at first, then slower.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const SHIFTS: [u8; NIBBLE_MEMORY as usize + 1] = {
    let mut table = [6; NIBBLE_MEMORY as usize + 1];
    let mut n = 0;
    while n < NIBBLE_MEMORY as usize {
        table[n] = match n {
            0..4 => 3,
            4..16 => 4,
            _ => 5,
        };
        n += 1;
    }
    table
};

/// `TARGETS[s]`: the cumulative probabilities that symbol s pulls to. Every symbol keeps 2^-15 in them, which keeps
/// `cumulative` strictly increasing.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const TARGETS: [[i16; 16]; 16] = {
    let mut table = [[0; 16]; 16];
    let mut symbol = 0u8;
    while symbol < 16 {
        let mut i = 0u8;
        while i < 16 {
            table[symbol as usize][i as usize] = if i <= symbol {
                i as i16
            } else {
                (ONE - 16).cast_signed() + i as i16
            };
            i += 1;
        }
        symbol += 1;
    }
    table
};

impl Nibble {
    /// All symbols equally likely.
    #[expect(clippy::indexing_slicing, reason = "bounded by the loop")]
    pub const fn new() -> Self {
        let mut cumulative = [i16::MIN; SYMBOLS + 1];
        let mut i = 0u8;
        while (i as usize) < SYMBOLS {
            cumulative[i as usize] = (i as i16) << 11;
            i += 1;
        }
        Self {
            cumulative,
            seen: 0,
        }
    }

    /// Codes a number below 16.
    #[inline]
    pub fn code<C: Coder>(&mut self, coder: &mut C, value: impl FnOnce() -> u32) -> u32 {
        let model = &*self;
        let symbol = coder.code(
            value,
            |symbol| model.slice(symbol),
            |point| model.find(point),
        );
        self.learn(symbol);
        symbol
    }

    #[inline(always)]
    fn slice(&self, symbol: u32) -> Slice {
        let symbol = symbol as usize;
        match self.cumulative.get(symbol..symbol + 2) {
            Some(&[start, end]) => Slice {
                start: start.cast_unsigned(),
                width: end.wrapping_sub(start).cast_unsigned(),
            },
            _ => Slice { start: 0, width: 1 },
        }
    }

    #[inline(always)]
    fn find(&self, point: u16) -> (u32, Slice) {
        let point = point.cast_signed();
        let symbols = self.cumulative.first_chunk::<SYMBOLS>();
        let below = symbols.map_or(1, |symbols| {
            symbols.iter().map(|&c| i16::from(c <= point)).sum::<i16>()
        });
        let symbol = u32::from((below - 1).cast_unsigned());
        (symbol, self.slice(symbol))
    }

    #[inline(always)]
    fn learn(&mut self, symbol: u32) {
        let (Some(target), Some(shift)) = (
            TARGETS.get(symbol as usize),
            SHIFTS.get(usize::from(self.seen)),
        ) else {
            return;
        };
        for (c, target) in self.cumulative.iter_mut().zip(target) {
            *c += (*target - *c) >> shift;
        }
        self.seen = (self.seen + 1).min(NIBBLE_MEMORY);
    }
}

/// Bit lengths that the first symbol tells apart; the last stands for all from it on.
const SHORT_LENGTHS: u32 = 15;
/// Bits after the leading one that are modelled.
const TOP_BITS: u32 = 4;
/// Bit lengths whose upper bits have a model of their own; longer numbers share the last.
const TOP_LENGTHS: usize = 18;

/// A whole number: its bit length, up to four bits after the leading one, and the rest without a model.
#[derive(Clone, Debug)]
pub(in crate::frame) struct Number {
    /// One for every context.
    lengths: Vec<Nibble>,
    /// For bit lengths from 15 on.
    long: Nibble,
    /// One for every group and bit length.
    tops: Vec<[Nibble; TOP_LENGTHS]>,
}

impl Number {
    /// `contexts` models of the bit length, and `groups` of the bits after the leading one.
    pub fn new(contexts: usize, groups: usize) -> Self {
        Self {
            lengths: vec![Nibble::new(); contexts],
            long: Nibble::new(),
            tops: vec![[Nibble::new(); TOP_LENGTHS]; groups],
        }
    }

    /// Codes a number in a context and a group, each below its count.
    #[inline]
    pub fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        context: usize,
        group: usize,
        value: impl FnOnce() -> u32,
    ) -> u32 {
        // An encoder calls the closure once, a decoder never.
        let mut known = 0;
        let Some(lengths) = self.lengths.get_mut(context) else {
            return 0;
        };
        let mut length = lengths.code(coder, || {
            known = value();
            bit_length(known).min(SHORT_LENGTHS)
        });
        if length == SHORT_LENGTHS {
            length += self
                .long
                .code(coder, || (bit_length(known) - SHORT_LENGTHS).min(15));
            if length == SHORT_LENGTHS + 15 {
                length += coder
                    .raw(2, || bit_length(known) - SHORT_LENGTHS - 15)
                    .min(2);
            }
        }
        let Some(below) = length.checked_sub(1) else {
            return 0;
        };
        let top_bits = below.min(TOP_BITS);
        let rest_bits = below - top_bits;
        let mut number = 1;
        let place = (length as usize).min(TOP_LENGTHS - 1);
        let top = self
            .tops
            .get_mut(group)
            .and_then(|tops| tops.get_mut(place));
        if let (1.., Some(top)) = (top_bits, top) {
            let mask = (1 << top_bits) - 1;
            number = number << top_bits | (top.code(coder, || known >> rest_bits & mask) & mask);
        }
        if rest_bits > 0 {
            number = number << rest_bits | coder.raw(rest_bits, || known);
        }
        number
    }
}

/// Bits of a number; 0 for 0.
#[inline]
pub(in crate::frame) fn bit_length(value: u32) -> u32 {
    u32::BITS - value.leading_zeros()
}

/// Folds a signed number: 0, -1, 1, -2 and so on become 0, 1, 2, 3.
#[inline]
pub(in crate::frame) fn fold(value: i32) -> u32 {
    (value << 1 ^ value >> 31).cast_unsigned()
}

/// Undoes [`fold`].
#[inline]
pub(in crate::frame) fn unfold(value: u32) -> i32 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}
