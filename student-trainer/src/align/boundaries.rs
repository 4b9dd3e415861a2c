//! Provides the places where two tokenizations of one text have a boundary at the same byte.

use std::collections::HashMap;

use crate::loss::Alignment;

/// Where the tokens of one tokenization begin.
pub(super) struct Boundaries {
    /// Start of every token; whether it has bytes; whether all tokens before it end there or earlier.
    tokens: Vec<(u32, bool, bool)>,
}

impl Boundaries {
    /// From the byte ranges of all tokens, targets or not.
    pub fn new(ranges: &[(u32, u32)]) -> Self {
        let mut end_before = 0;
        let mut token = |&(start, end): &(u32, u32)| {
            let clean = end_before <= start;
            end_before = end_before.max(end);
            (start, start < end, clean)
        };
        Self {
            tokens: ranges.iter().map(&mut token).collect(),
        }
    }

    /// Byte where token `t` begins.
    pub fn start(&self, t: usize) -> usize {
        self.tokens.get(t).map_or(0, |token| token.0 as usize)
    }

    /// Byte where token `t` begins, if all tokens before it end there or earlier.
    pub fn clean_start(&self, t: usize) -> Option<u32> {
        self.tokens
            .get(t)
            .filter(|token| token.2)
            .map(|token| token.0)
    }

    /// What token `t` is predicted from, as a key that two tokenizations share: the byte where everything before it ends.
    ///
    /// Tokens of one divided character may all have that character's range; only the first of them begins where it says.
    /// An end-of-text without bytes is another thing than a token that begins there.
    fn key(&self, t: usize) -> Option<(u32, bool)> {
        let &(start, has_bytes, clean) = self.tokens.get(t)?;
        clean.then_some((start, has_bytes))
    }

    /// Places `targets` of this side, the student's, beside `rows`, the positions that the teacher's rows speak of.
    pub fn align(
        &self,
        targets: &[usize],
        teacher: &Self,
        rows: &[usize],
        text_bytes: usize,
    ) -> Alignment {
        let mut row_at = HashMap::with_capacity(rows.len());
        for (j, &position) in rows.iter().enumerate() {
            if let Some(key) = teacher.key(position) {
                row_at.entry(key).or_insert(j);
            }
        }
        // A row has one partner at most, and partners come in order on both sides.
        let mut next = 0;
        let mut pair = |t: usize| {
            let j = self.key(t).and_then(|key| row_at.get(&key).copied());
            let j = j.filter(|&j| j >= next)?;
            next = j + 1;
            Some(j)
        };
        let share = |start: usize| start as f64 / text_bytes.max(1) as f64;
        Alignment {
            pairs: targets.iter().map(|&t| pair(t)).collect(),
            student_places: targets.iter().map(|&t| share(self.start(t))).collect(),
            teacher_places: rows.iter().map(|&t| share(teacher.start(t))).collect(),
            ..Alignment::default()
        }
    }
}
