//! Provides the account of what a reading left out: how much of it, and by name what should not have been there.

use std::fmt;

use crate::{
    Error,
    limits::{SKIPPED_NAMED_MAX, SKIPPED_REASON_CHARS_MAX, SKIPPED_SHOWN_MAX},
};

/// What was left out or shortened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Lines and rows that cannot be used.
    pub rows: u64,
    /// The first `limits::SKIPPED_NAMED_MAX` of them: file, line or row, and the reason.
    pub named: Vec<String>,
    /// Prompts with completions and conversations that were cut at `seq_len`.
    pub truncated: u64,
    /// Sequences dropped because no target was left in them.
    pub without_target: u64,
    /// Sequences dropped because they have fewer than `min_tokens` tokens.
    pub too_short: u64,
}

impl Skipped {
    pub(super) fn name(&mut self, error: &Error) {
        self.rows += 1;
        if self.named.len() < SKIPPED_NAMED_MAX {
            let whole = error.to_string();
            let mut name: String = whole.chars().take(SKIPPED_REASON_CHARS_MAX).collect();
            if name.len() < whole.len() {
                name.push('…');
            }
            self.named.push(name);
        }
    }
}

/// The rows that cannot be used, a line each, and where those are named that would be too many; nothing where there are none.
impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows == 0 {
            return Ok(());
        }
        let rows = if self.rows == 1 { "row" } else { "rows" };
        write!(
            f,
            "{} {rows} skipped (--strict stops at the first one):",
            self.rows
        )?;
        for name in self.named.iter().take(SKIPPED_SHOWN_MAX) {
            write!(f, "\n  {}", name.replace('\n', " "))?;
        }
        let named = self.named.len() as u64;
        let more = self.rows - named.min(SKIPPED_SHOWN_MAX as u64);
        if more > 0 {
            write!(f, "\n  and {more} more")?;
        }
        if named <= SKIPPED_SHOWN_MAX as u64 {
            Ok(())
        } else if named == self.rows {
            f.write_str("; --json names all of them")
        } else {
            write!(f, "; --json names the first {named}")
        }
    }
}
