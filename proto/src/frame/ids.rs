//! Provides the coding of a row's ids as a set: which known ids come back, and which new ones come.
//!
//! Ids that are likely (Known::candidates) take a flag each, the other known ones are counted and found group by group
//! as runs of ids that are left out, new ids as gaps between them.

use super::{
    entropy::{Bit, Coder, Number, bit_length},
    groups::{Bitmap, Group},
    known::{GROUPS, Habit, Known, MATCHES, SHARES},
};
use crate::numbers::{low_word, narrow};

/// Where an id of a row comes from; the value beside it is coded accordingly.
pub(super) const NEW: u8 = 0;
pub(super) const SELDOM: u8 = 1;
pub(super) const LIKELY: u8 = 2;

/// Models of the ids of a frame's rows.
#[derive(Debug)]
pub(super) struct IdModel {
    known: Known,
    /// Numbers of the known ids by id, for an encoder; 0 is none.
    numbers: Vec<u32>,
    likely: Vec<Bit>,
    new_count: Number,
    gap: Number,
    group_count: Number,
    run: Number,
    /// An encoder's ids that are no candidates, by group, ascending.
    seldom: [Vec<u32>; GROUPS],
    // Reused from row to row.
    candidates: Bitmap,
    present: Bitmap,
    used: Vec<u32>,
    new: Vec<u32>,
}

const AGES: usize = 8;
const COUNT_CONTEXTS: usize = 24;
const RUN_CONTEXTS: usize = 48;
const GAP_LENGTHS: usize = 21;
const LEFT: usize = 4;

impl IdModel {
    /// `encoding_vocabulary`: the vocabulary for an encoder, 0 for a decoder.
    pub fn new(encoding_vocabulary: usize) -> Self {
        let likely = (0..(MATCHES + 1) * (MATCHES + 1) * SHARES * AGES).map(|context| {
            // A first guess: the share of rows that have it.
            let below = narrow(SHARES - context % SHARES);
            let half = if below.is_multiple_of(2) { 255 } else { 181 };
            Bit::new((half >> (below / 2)).max(8))
        });
        Self {
            known: Known::default(),
            numbers: vec![0; encoding_vocabulary],
            likely: likely.collect(),
            new_count: Number::new(COUNT_CONTEXTS, 1),
            gap: Number::new(GAP_LENGTHS * LEFT, GAP_LENGTHS * LEFT),
            group_count: Number::new(GROUPS * 8, GROUPS),
            run: Number::new(RUN_CONTEXTS, RUN_CONTEXTS),
            seldom: Default::default(),
            candidates: Bitmap::default(),
            present: Bitmap::default(),
            used: Vec::new(),
            new: Vec::new(),
        }
    }

    /// Codes the set of `width` ids of the row after `token`, and puts it into `entries`, ascending; [`split`] gives an
    /// id and where it comes from. An encoder gives the ids, ascending. `false`: no encoder wrote this.
    pub fn code_row<C: Coder>(
        &mut self,
        coder: &mut C,
        token: u32,
        width: usize,
        ids: &[u32],
        entries: &mut Vec<u64>,
    ) -> bool {
        self.look_up(ids);
        entries.clear();
        let matching = self.known.candidates(token, &mut self.candidates);
        self.code_likely(coder, matching, entries);
        let Some(left) = width.checked_sub(entries.len()) else {
            return false;
        };
        let new = &self.new;
        let context = (left / 3).min(COUNT_CONTEXTS - 1);
        let new_count = self.new_count.code(coder, context, 0, || narrow(new.len())) as usize;
        let Some(seldom) = left.checked_sub(new_count) else {
            return false;
        };
        self.sort_seldom(ids);
        if !self.code_seldom(coder, seldom, entries) {
            return false;
        }
        self.code_new(coder, new_count, entries);
        self.end_row(token);
        entries.sort_unstable();
        entries.len() == width
    }

    /// Splits an encoder's ids into known and new ones.
    fn look_up(&mut self, ids: &[u32]) {
        self.used.clear();
        self.new.clear();
        if self.numbers.is_empty() {
            return;
        }
        self.present.0.fill(0);
        for &id in ids {
            match self.numbers.get(id as usize).copied() {
                Some(number @ 1..) => self.present.set(number as usize - 1),
                _ => self.new.push(id),
            }
        }
    }

    /// Sorts an encoder's known ids that are no candidates into their groups.
    fn sort_seldom(&mut self, ids: &[u32]) {
        self.seldom.iter_mut().for_each(Vec::clear);
        if self.numbers.is_empty() {
            return;
        }
        for &id in ids {
            let number = self.numbers.get(id as usize).copied().unwrap_or_default();
            let Some(number) = number.checked_sub(1) else {
                continue;
            };
            let group = self.known.group_of(number as usize);
            if let Some(own) = group.and_then(|group| self.seldom.get_mut(group)) {
                own.push(number);
            }
        }
        self.seldom.iter_mut().for_each(|own| own.sort_unstable());
    }

    fn code_likely<C: Coder>(&mut self, coder: &mut C, matching: usize, entries: &mut Vec<u64>) {
        let per_row = (1 << 16) / self.known.rows().max(1);
        for (place, &word) in self.candidates.0.iter().enumerate() {
            let mut word = word;
            while word != 0 {
                let number = 64 * place + word.trailing_zeros() as usize;
                word &= word - 1;
                let Habit {
                    share,
                    matches,
                    age,
                } = self.known.habit(number, per_row);
                let context = ((matching * (MATCHES + 1) + matches) * AGES + age) * SHARES + share;
                let present = &self.present;
                let Some(model) = self.likely.get_mut(context) else {
                    continue;
                };
                if model.code(coder, || present.has(number)) {
                    self.used.push(narrow(number));
                    entries.push(entry(self.known.id(number), LIKELY));
                } else {
                    self.known.miss(number);
                }
            }
        }
    }

    fn code_seldom<C: Coder>(
        &mut self,
        coder: &mut C,
        mut left: usize,
        entries: &mut Vec<u64>,
    ) -> bool {
        let sizes: [usize; GROUPS] =
            std::array::from_fn(|group| self.known.group(group).map_or(0, Group::len));
        let mut others: usize = sizes.iter().sum();
        for (group, size) in sizes.into_iter().enumerate().rev() {
            others -= size;
            let own = self
                .seldom
                .get_mut(group)
                .map(std::mem::take)
                .unwrap_or_default();
            let count = match left {
                0 => break,
                // The last ids are of the groups that are left.
                _ if others == 0 => left,
                _ if size == 0 => 0,
                _ => {
                    let context = GROUPS * (bit_length(narrow(left)) as usize).min(7) + group;
                    self.group_count
                        .code(coder, context, group, || narrow(own.len()))
                        as usize
                }
            };
            let fits =
                count <= left.min(size) && self.code_runs(coder, group, size, count, &own, entries);
            if !fits {
                return false;
            }
            left -= count;
            if let Some(place) = self.seldom.get_mut(group) {
                *place = own;
            }
        }
        left == 0
    }

    /// Codes which `count` of a group's `size` ids the row has. `own` are an encoder's, ascending.
    fn code_runs<C: Coder>(
        &mut self,
        coder: &mut C,
        group: usize,
        size: usize,
        count: usize,
        own: &[u32],
        entries: &mut Vec<u64>,
    ) -> bool {
        let Some(members) = self.known.group(group) else {
            return false;
        };
        let mut walk = members.walk();
        let mut free = size - count;
        for taken in 0..count {
            let run = if free == 0 {
                0
            } else {
                let context = half_octaves(narrow(2 * free / (count - taken + 1)) | 1);
                let context = context.min(RUN_CONTEXTS - 1);
                let known = || {
                    own.get(taken)
                        .map_or(0, |&number| walk.run(number as usize))
                };
                self.run.code(coder, context, context, known) as usize
            };
            let Some(rest) = free.checked_sub(run) else {
                return false;
            };
            free = rest;
            let Some(number) = walk.skip(run) else {
                return false;
            };
            self.used.push(narrow(number));
            entries.push(entry(self.known.id(number), SELDOM));
        }
        true
    }

    fn code_new<C: Coder>(&mut self, coder: &mut C, count: usize, entries: &mut Vec<u64>) {
        let mut start = 0u32;
        for place in 0..count {
            let left = (bit_length(narrow(count - place)) as usize).min(LEFT) - 1;
            let context = LEFT * (bit_length(start) as usize).min(GAP_LENGTHS - 1) + left;
            let new = &self.new;
            let gap = self.gap.code(coder, context, context, || {
                new.get(place).map_or(0, |id| id - start)
            });
            let id = start.saturating_add(gap);
            if self.new.len() <= place {
                self.new.push(id);
            }
            entries.push(entry(id, NEW));
            start = id.saturating_add(1);
        }
    }

    fn end_row(&mut self, token: u32) {
        if !self.numbers.is_empty() {
            for (id, number) in self.new.iter().zip(narrow(self.known.len()) + 1..) {
                if let Some(place) = self.numbers.get_mut(*id as usize) {
                    *place = number;
                }
            }
        }
        self.known.end_row(token, &self.used, &self.new);
    }
}

/// Twice the binary logarithm of a number above 0.
fn half_octaves(number: u32) -> usize {
    let log = number.ilog2();
    (2 * log + low_word(u64::from(number) << 1 >> log & 1)) as usize
}

/// An id and where it comes from, in one number that sorts by id.
fn entry(id: u32, source: u8) -> u64 {
    u64::from(id) << 2 | u64::from(source)
}

/// Undoes [`entry`].
pub(super) fn split(entry: u64) -> (u32, usize) {
    (low_word(entry >> 2), (entry & 3) as usize)
}
