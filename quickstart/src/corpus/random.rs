//! Provides the generator's source of randomness, whose numbers are part of the corpus.

pub(super) use distill_program::random::mix;
use distill_program::random::{GOLDEN_GAMMA, split_mix};

/// SplitMix64.
#[derive(Clone, Debug)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        let number = split_mix(self.state);
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        number
    }

    /// A number in `0..bound`; 0 where the bound is 0. The bias of the product is below 2^-32 here.
    pub fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below((high.saturating_sub(low) + 1) as usize) as u32
    }

    /// One of several; the slice must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// `count` different ones of several, in random order.
    pub fn pick_distinct<T: Copy>(&mut self, items: &[T], count: usize) -> Vec<T> {
        let mut rest = items.to_vec();
        (0..count.min(items.len()))
            .map(|_| {
                let index = self.below(rest.len());
                rest.swap_remove(index)
            })
            .collect()
    }
}
