//! Provides the ids that a frame has used so far, with what tells how likely each is to be used again.

use std::collections::HashMap;

use super::groups::{Bitmap, Group};
use crate::numbers::{low_word, narrow};

/// Rows after which an id counts as not used lately.
const RECENT_ROWS: u32 = 12;
/// An id in more than one of this many rows is asked for in every row.
const FREQUENT_ROWS: u32 = 8;
/// Groups of the ids that are not asked for one by one: by uses (1, 2, 3 to 4, more), each by whether that was lately.
pub(super) const GROUPS: usize = 8;
/// Earlier rows after the same token that a row is compared with.
pub(super) const MATCHES: usize = 2;

/// Ids in the order of their first use, which is their number here.
#[derive(Debug, Default)]
pub(super) struct Known {
    ids: Vec<Use>,
    groups: [Group; GROUPS],
    frequent: Bitmap,
    /// Candidates that were taken out of their group.
    taken: Vec<u32>,
    /// Numbers of the ids of all rows so far, one after another, and where each row ends.
    entries: Vec<u32>,
    ends: Vec<usize>,
    /// The last rows after each token.
    after: HashMap<u32, [Option<u32>; MATCHES]>,
}

/// An id with its past.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    id: u32,
    /// Rows that have it, and the last of them.
    uses: u32,
    last_row: u32,
    /// In how many of the matching rows it is; 0 between rows.
    matches: u8,
    /// Where it is; `NO_GROUP` for frequent ones and for candidates while their row is coded.
    group: u8,
}

/// What is known of an id that a row is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habit {
    /// Twice the binary logarithm of the share of rows that have it, from 0 (rare) to `SHARES - 1`.
    pub share: usize,
    /// Matching rows that have it.
    pub matches: usize,
    /// Binary logarithm of the rows since its last use, at most 7; 0 for the row before.
    pub age: usize,
}

/// Values of `Habit::share`.
pub(super) const SHARES: usize = 13;

impl Known {
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Rows so far.
    pub fn rows(&self) -> u32 {
        narrow(self.ends.len())
    }

    pub fn id(&self, number: usize) -> u32 {
        self.ids.get(number).copied().unwrap_or_default().id
    }

    pub fn group(&self, group: usize) -> Option<&Group> {
        self.groups.get(group)
    }

    /// The group that an id is in, if it is in one.
    pub fn group_of(&self, number: usize) -> Option<usize> {
        let group = self.ids.get(number).map(|known| usize::from(known.group));
        group.filter(|&group| group < GROUPS)
    }

    /// Fills `candidates` with the ids that the next row, which follows `token`, is asked for one by one: those of matching
    /// rows, of the row before and frequent ones. Gives the number of matching rows.
    pub fn candidates(&mut self, token: u32, candidates: &mut Bitmap) -> usize {
        candidates.0.clone_from(&self.frequent.0);
        candidates.0.resize(self.ids.len().div_ceil(64), 0);
        if let Some(before) = self.ends.len().checked_sub(1) {
            for &number in row(&self.entries, &self.ends, before) {
                candidates.set(number as usize);
            }
        }
        let matching = self.after.get(&token).copied().unwrap_or_default();
        for &place in matching.iter().flatten() {
            for &number in row(&self.entries, &self.ends, place as usize) {
                candidates.set(number as usize);
                if let Some(known) = self.ids.get_mut(number as usize) {
                    known.matches += 1;
                }
            }
        }
        matching.iter().flatten().count()
    }

    /// What is known of a candidate, which leaves its group until the row ends. `per_row` is 2^16 over the number of rows.
    #[inline]
    pub fn habit(&mut self, number: usize, per_row: u32) -> Habit {
        let rows = self.rows();
        let mut blank = Use::default();
        let known = self.ids.get_mut(number).unwrap_or(&mut blank);
        let matches = std::mem::take(&mut known.matches);
        let group = std::mem::replace(&mut known.group, NO_GROUP);
        let (uses, last) = (known.uses, known.last_row);
        if let Some(group) = self.groups.get_mut(usize::from(group)) {
            group.remove(number);
            self.taken.push(narrow(number));
        }
        // In units of 2^-16: 16 bits for every row.
        let share = (u64::from(uses) * u64::from(per_row)) | 1;
        let log = share.ilog2();
        let half = low_word(share << 1 >> log & 1);
        Habit {
            share: (2 * log + half)
                .saturating_sub(33 - narrow(SHARES))
                .min(narrow(SHARES) - 1) as usize,
            matches: matches.into(),
            age: ((rows - last).max(1).ilog2() as usize).min(7),
        }
    }

    /// Notes that a candidate is not in the row that is being coded.
    #[inline]
    pub fn miss(&mut self, number: usize) {
        let uses = self.ids.get(number).copied().unwrap_or_default().uses;
        if self.frequent.has(number) && !is_frequent(uses, self.rows() + 1) {
            self.frequent.clear(number);
            self.taken.push(narrow(number));
        }
    }

    /// Ends a row that follows `token`: `used` are numbers of known ids, `new` ids get the next numbers.
    pub fn end_row(&mut self, token: u32, used: &[u32], new: &[u32]) {
        let current = self.rows();
        self.age(current);
        for &number in used {
            self.entries.push(number);
            self.note(number as usize, current);
        }
        let mut taken = std::mem::take(&mut self.taken);
        for number in taken.drain(..) {
            self.settle(number as usize, current);
        }
        self.taken = taken;
        for &id in new {
            let number = self.ids.len();
            self.ids.push(Use {
                id,
                group: NO_GROUP,
                ..Use::default()
            });
            self.entries.push(narrow(number));
            self.note(number, current);
        }
        self.ends.push(self.entries.len());
        let after = self.after.entry(token).or_default();
        after.rotate_right(1);
        if let Some(first) = after.first_mut() {
            *first = Some(current);
        }
    }

    /// Moves the ids whose last use has become long ago to their other group.
    fn age(&mut self, current: u32) {
        let Some(place) = current.checked_sub(RECENT_ROWS) else {
            return;
        };
        let start = place
            .checked_sub(1)
            .and_then(|before| self.ends.get(before as usize));
        let end = self.ends.get(place as usize).copied().unwrap_or_default();
        for entry in start.copied().unwrap_or_default()..end {
            let number = self.entries.get(entry).copied().unwrap_or_default() as usize;
            let known = self.ids.get(number).copied().unwrap_or_default();
            if known.last_row == place && known.group != NO_GROUP {
                self.settle(number, current);
            }
        }
    }

    fn note(&mut self, number: usize, current: u32) {
        let Some(known) = self.ids.get_mut(number) else {
            return;
        };
        known.uses += 1;
        known.last_row = current;
        if is_frequent(known.uses, current + 1) {
            self.frequent.set(number);
        }
        self.settle(number, current);
    }

    /// Puts an id into the group where it belongs after row `current`.
    #[inline]
    fn settle(&mut self, number: usize, current: u32) {
        let Some(known) = self.ids.get_mut(number) else {
            return;
        };
        let to = if self.frequent.has(number) {
            NO_GROUP
        } else {
            group_of(known.uses, current - known.last_row < RECENT_ROWS)
        };
        let from = std::mem::replace(&mut known.group, to);
        if from == to {
            return;
        }
        if let Some(group) = self.groups.get_mut(usize::from(from)) {
            group.remove(number);
        }
        if let Some(group) = self.groups.get_mut(usize::from(to)) {
            group.insert(number);
        }
    }
}

fn row<'a>(entries: &'a [u32], ends: &[usize], place: usize) -> &'a [u32] {
    let start = place.checked_sub(1).and_then(|before| ends.get(before));
    let end = ends.get(place).copied().unwrap_or_default();
    entries
        .get(start.copied().unwrap_or_default()..end)
        .unwrap_or_default()
}

fn is_frequent(uses: u32, rows: u32) -> bool {
    uses > 1 && uses.saturating_mul(FREQUENT_ROWS) > rows
}

/// Stands for no group.
const NO_GROUP: u8 = u8::MAX;

fn group_of(uses: u32, recent: bool) -> u8 {
    let by_uses = match uses {
        0..=1 => 0,
        2 => 1,
        3..=4 => 2,
        _ => 3,
    };
    2 * by_uses + u8::from(recent)
}
