//! Provides sets of small numbers, and their walk by rank.

use crate::numbers::narrow;

/// A set of small numbers that can be walked by rank.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    members: Bitmap,
    /// Members in each word of `members`.
    counts: Vec<u8>,
    len: usize,
}

impl Group {
    /// Members.
    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub fn insert(&mut self, number: usize) {
        self.members.set(number);
        if self.counts.len() <= number / 64 {
            self.counts.resize(number / 64 + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(number / 64) {
            *count += 1;
        }
        self.len += 1;
    }

    #[inline]
    pub fn remove(&mut self, number: usize) {
        self.members.clear(number);
        if let Some(count) = self.counts.get_mut(number / 64) {
            *count -= 1;
        }
        self.len -= 1;
    }

    pub fn walk(&self) -> Walk<'_> {
        Walk {
            group: self,
            place: 0,
            word: self.members.0.first().copied().unwrap_or_default(),
            left: self.counts.first().copied().unwrap_or_default().into(),
        }
    }
}

/// Goes through a group in order.
#[derive(Clone, Debug)]
pub(super) struct Walk<'a> {
    group: &'a Group,
    /// The current word's place, what is left of it, and members in that.
    place: usize,
    word: u64,
    left: usize,
}

impl Walk<'_> {
    /// Leaves out `run` members and gives the next.
    #[inline]
    pub fn skip(&mut self, mut run: usize) -> Option<usize> {
        if run >= self.left {
            run -= self.left;
            let counts = self.group.counts.get(self.place + 1..)?;
            for &count in counts {
                self.place += 1;
                if run < usize::from(count) {
                    self.left = count.into();
                    break;
                }
                run -= usize::from(count);
                self.left = 0;
            }
            self.word = self.group.members.0.get(self.place).copied()?;
            if run >= self.left {
                return None;
            }
        }
        for _ in 0..run {
            self.word &= self.word - 1;
        }
        let bit = self.word.trailing_zeros() as usize;
        self.word &= self.word - 1;
        self.left -= run + 1;
        Some(64 * self.place + bit)
    }

    /// Members before `number`, which is ahead.
    pub fn run(&self, number: usize) -> u32 {
        let below = |word: u64| (word & ((1 << (number % 64)) - 1)).count_ones();
        if number / 64 == self.place {
            return below(self.word);
        }
        let between = self
            .group
            .counts
            .get(self.place + 1..number / 64)
            .unwrap_or_default();
        let between: u32 = between.iter().map(|&count| u32::from(count)).sum();
        let word = self
            .group
            .members
            .0
            .get(number / 64)
            .copied()
            .unwrap_or_default();
        narrow(self.left) + between + below(word)
    }
}

/// A set of small numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Bitmap(pub Vec<u64>);

impl Bitmap {
    #[inline]
    pub fn set(&mut self, number: usize) {
        if self.0.len() <= number / 64 {
            self.0.resize(number / 64 + 1, 0);
        }
        if let Some(word) = self.0.get_mut(number / 64) {
            *word |= 1 << (number % 64);
        }
    }

    #[inline]
    pub fn clear(&mut self, number: usize) {
        if let Some(word) = self.0.get_mut(number / 64) {
            *word &= !(1 << (number % 64));
        }
    }

    #[inline]
    pub fn has(&self, number: usize) -> bool {
        self.0
            .get(number / 64)
            .is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
}
