//! Provides the coding of tokens, by their rank in the row that describes them, and of their places in the text.

use std::collections::HashMap;

use super::{
    entropy::{Bit, Coder, Number, bit_length, fold, unfold},
    rows::Entry,
};
use crate::numbers::{low_word, narrow};

const RANK_CONTEXTS: usize = 12;

/// Models of the tokens themselves and of their places in the text.
pub(super) struct TokenModel {
    rank: Number,
    back: Number,
    id: Number,
    same_gap: Bit,
    gap: Number,
    same_length: Bit,
    length: Number,
    /// Place of a token's last use, and its length in the text there.
    last: HashMap<u32, (u32, u32)>,
    ranked: Vec<u64>,
}

impl TokenModel {
    pub fn new() -> Self {
        Self {
            rank: Number::new(RANK_CONTEXTS, RANK_CONTEXTS),
            back: Number::new(1, 1),
            id: Number::new(1, 1),
            same_gap: Bit::new(250),
            gap: Number::new(1, 1),
            same_length: Bit::new(250),
            length: Number::new(1, 1),
            last: HashMap::new(),
            ranked: Vec::new(),
        }
    }

    /// Codes the token at `place`. `row`: entries of the row that describes it, if there is one.
    pub fn code_id<C: Coder>(
        &mut self,
        coder: &mut C,
        row: &[Entry],
        before: &[u32],
        token: u32,
    ) -> u32 {
        if !row.is_empty() {
            // By probability, then by id.
            self.ranked.clear();
            let keys = row
                .iter()
                .map(|entry| u64::from(entry.code) << 32 | u64::from(entry.id));
            self.ranked.extend(keys);
            let (first, second) = smallest(&self.ranked);
            let context = bit_length(low_word((second >> 32) - (first >> 32))) as usize;
            let context = context.min(RANK_CONTEXTS - 1);
            let ranked = &self.ranked;
            let rank = self.rank.code(coder, context, context, || {
                let own = ranked.iter().find(|&&key| low_word(key) == token);
                own.map_or(0, |own| {
                    1 + narrow(ranked.iter().filter(|&key| key < own).count())
                })
            });
            if let Some(rank) = (rank as usize).checked_sub(1) {
                if rank == 0 {
                    return low_word(first);
                }
                let rank = rank.min(self.ranked.len() - 1);
                return low_word(*self.ranked.select_nth_unstable(rank).1);
            }
        }
        let last = &self.last;
        let here = narrow(before.len());
        let back = self.back.code(coder, 0, 0, || {
            last.get(&token).map_or(0, |(place, _)| here - place)
        });
        let earlier = (here as usize).checked_sub(back as usize);
        match earlier.and_then(|place| before.get(place)) {
            Some(&token) => token,
            None => self.id.code(coder, 0, 0, || token),
        }
    }

    /// Codes the byte range of a token that begins after `end`.
    pub fn code_range<C: Coder>(
        &mut self,
        coder: &mut C,
        place: u32,
        token: u32,
        end: u32,
        range: (u32, u32),
    ) -> (u32, u32) {
        let start = if self.same_gap.code(coder, || range.0 == end) {
            end
        } else {
            let gap = self.gap.code(coder, 0, 0, || {
                fold(range.0.wrapping_sub(end).cast_signed())
            });
            end.wrapping_add(unfold(gap).cast_unsigned())
        };
        let length = range.1.wrapping_sub(range.0);
        let expected = self.last.get(&token).map(|(_, length)| *length);
        let length = match expected {
            Some(expected) if self.same_length.code(coder, || length == expected) => expected,
            _ => self.length.code(coder, 0, 0, || length),
        };
        self.last.insert(token, (place, length));
        (start, start.wrapping_add(length))
    }
}

/// The two smallest keys; the one twice where there is no other.
fn smallest(keys: &[u64]) -> (u64, u64) {
    let (mut first, mut second) = (u64::MAX, u64::MAX);
    for &key in keys {
        second = second.min(key.max(first));
        first = first.min(key);
    }
    (first, if second == u64::MAX { first } else { second })
}
