//! Provides windows of running text: cut at tokens that begin a character, so that every window is a text of its own.

use super::{Windowing, collector::Collector, masked::Draft};
use crate::{Encoded, Error, Result, TokenizerFiles};

/// Tokens of a document that are not in a window yet, with their text.
pub(super) struct TextWindows<'a> {
    tokenizer: &'a TokenizerFiles,
    /// Tokens of text in one window.
    capacity: usize,
    text: String,
    encoded: Encoded,
    /// First token and byte that are in no window yet.
    next: Cut,
}

/// A place between two tokens where a text can be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    pub token: usize,
    pub byte: usize,
}

impl<'a> TextWindows<'a> {
    pub fn new(tokenizer: &'a TokenizerFiles, windowing: &Windowing) -> Self {
        Self {
            tokenizer,
            capacity: windowing
                .seq_len
                .saturating_sub(tokenizer.prefix_ids().len()),
            text: String::new(),
            encoded: Encoded::default(),
            next: Cut::default(),
        }
    }

    /// Adds a piece of the document and passes on the windows that are full.
    pub fn push(&mut self, piece: &str, collector: &mut Collector<'_>) -> Result<()> {
        self.compact();
        let before = self.text.len() as u32;
        let piece_encoded = self.tokenizer.encode(piece)?;
        let ranges = piece_encoded.ranges.into_iter();
        self.encoded
            .ranges
            .extend(ranges.map(|(start, end)| (start + before, end + before)));
        self.encoded.ids.extend(piece_encoded.ids);
        self.text += piece;
        while self.encoded.ids.len() - self.next.token > self.capacity {
            let until = cut_before(
                &self.text,
                &self.encoded.ranges,
                self.next.token,
                self.next.token + self.capacity,
            );
            let until = until.ok_or_else(|| {
                let reason = "has more tokens than a window; raise seq_len";
                Error::Windowing(format!("one character at byte {} {reason}", self.next.byte))
            })?;
            self.pass_on(until, collector)?;
        }
        Ok(())
    }

    /// Passes on what is left as the last window.
    pub fn finish(&mut self, collector: &mut Collector<'_>) -> Result<()> {
        let end = Cut {
            token: self.encoded.ids.len(),
            byte: self.text.len(),
        };
        if end.token > self.next.token {
            self.pass_on(end, collector)?;
        }
        Ok(())
    }

    fn pass_on(&mut self, until: Cut, collector: &mut Collector<'_>) -> Result<()> {
        let from = std::mem::replace(&mut self.next, until);
        let tokens = from.token..until.token;
        let ids = self.encoded.ids.get(tokens.clone()).unwrap_or_default();
        let ranges = self.encoded.ranges.get(tokens).unwrap_or_default();
        let text = self.text.get(from.byte..until.byte).unwrap_or_default();
        let shift = from.byte as u32;
        let mut window = Draft {
            text: text.to_owned(),
            ids: ids.to_vec(),
            ranges: ranges
                .iter()
                .map(|(start, end)| (start - shift, end - shift))
                .collect(),
            mask: vec![true; ids.len()],
        };
        window.put_before(self.tokenizer.prefix_ids());
        collector.accept(window)
    }

    /// Drops what is in a window already.
    fn compact(&mut self) {
        let Cut { token, byte } = std::mem::take(&mut self.next);
        self.text.drain(..byte);
        self.encoded.ids.drain(..token);
        self.encoded.ranges.drain(..token);
        let shift = byte as u32;
        for (start, end) in &mut self.encoded.ranges {
            *start -= shift;
            *end -= shift;
        }
    }
}

/// The last place in tokens `(first, limit]` where a character begins and no token reaches across; the bytes between two
/// tokens that belong to none go with the first. `None` where one character fills it all.
pub(super) fn cut_before(
    text: &str,
    ranges: &[(u32, u32)],
    first: usize,
    limit: usize,
) -> Option<Cut> {
    (first + 1..=limit).rev().find_map(|token| {
        let end = ranges.get(token - 1)?.1;
        let start = ranges.get(token)?.0;
        let byte = start as usize;
        (end <= start && text.is_char_boundary(byte)).then_some(Cut { token, byte })
    })
}
