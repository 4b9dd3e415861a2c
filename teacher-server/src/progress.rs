//! Provides the progress of what a teacher computes: parts of it, and the rate of the units in them.

use distill_program::{
    progress::{Progress as Units, Style},
    units::Digits,
};

/// Shows how much of the plan, or of something before it, has been computed.
pub struct Progress {
    words: Words,
    parts: u64,
    parts_done: u64,
    /// None where nothing is shown.
    units: Option<Units>,
}

/// What is counted, and where it is from.
#[derive(Clone, Copy, Default)]
pub struct Words {
    /// Who does it.
    pub label: &'static str,
    /// What `advance` counts first, e.g. `sequences`.
    pub parts: &'static str,
    /// What the rate is of, e.g. `tokens`.
    pub units: &'static str,
}

impl Progress {
    /// Over a plan of this many sequences and tokens, on standard error.
    pub fn new(sequences: u64, tokens: u64) -> Self {
        let words = Words {
            label: "teacher",
            parts: "sequences",
            units: "tokens",
        };
        Self::of(words, sequences, tokens)
    }

    /// As `new`, for something that is not the plan.
    pub fn of(words: Words, parts: u64, units: u64) -> Self {
        let style = Style {
            bar: "{prefix} {bar:30} {msg}",
            line: |now| format!("{}: {}{}", now.label, now.message, now.eta()),
        };
        let mut shown = Units::start(&style, words.label, units);
        shown.tell(format!("0/{parts} {}", words.parts));
        Self {
            words,
            parts,
            parts_done: 0,
            units: Some(shown),
        }
    }

    /// Shows nothing.
    pub fn hidden() -> Self {
        Self {
            words: Words::default(),
            parts: 0,
            parts_done: 0,
            units: None,
        }
    }

    /// Counts what was computed just now.
    pub fn advance(&mut self, parts: u64, units: u64) {
        let is_first = self.parts_done == 0;
        self.parts_done += parts;
        let Some(progress) = &mut self.units else {
            return;
        };
        if is_first {
            // The rate counts from the end of the first batch, which warms caches up.
            progress.skip(units);
            progress.restart();
        } else {
            progress.done += units;
            let (done, all, Words { parts, units, .. }) = (self.parts_done, self.parts, self.words);
            let rate = Digits(progress.rate());
            progress.tell(format!("{done}/{all} {parts}, {rate} {units}/s"));
            progress.reach(progress.done, done >= all);
        }
        if self.parts_done >= self.parts {
            progress.finish();
        }
    }
}
