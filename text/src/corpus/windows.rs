//! Provides windows of running text: cut at tokens that begin a character, so that every window is a text of its own.

use std::ops::Range;

use distill_proto::limits::TEXT_BYTES_MAX;

use super::{Windowing, collector::Collector, masked::Draft};
use crate::{
    Encoded, Error, Result, TokenizerFiles, limits::PIECE_OVERLAP_BYTES, tokenizer::offset,
};

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
    pub byte: u32,
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
        let before = offset(self.text.len())?;
        let from = self.overlap()?;
        self.text += piece;
        let again = self.text.get(from as usize..).unwrap_or_default();
        let mut encoded = self.tokenizer.encode(again)?;
        for (start, end) in &mut encoded.ranges {
            *start += from;
            *end += from;
        }
        append(&mut self.encoded, encoded, from..before);
        // What the next piece is encoded with again is in no window yet.
        let settled = self.overlap()?;
        let settled = self
            .encoded
            .ranges
            .partition_point(|range| range.1 <= settled);
        self.pass_on_full(settled, collector)?;
        // A text of which nothing becomes a token would be kept to its end.
        check_length(self.text.len() - self.next.byte as usize)
    }

    /// Where the text begins that is encoded once more with the next piece: at its end for a tokenizer that makes the same
    /// of a piece as of the whole.
    fn overlap(&self) -> Result<u32> {
        if !self.tokenizer.puts_before() {
            return offset(self.text.len());
        }
        let at = self.text.len().saturating_sub(PIECE_OVERLAP_BYTES);
        Ok(offset(self.text.floor_char_boundary(at))?.max(self.next.byte))
    }

    /// Passes on full windows of the first `settled` tokens.
    fn pass_on_full(&mut self, settled: usize, collector: &mut Collector<'_>) -> Result<()> {
        while settled > self.next.token + self.capacity {
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
        self.pass_on_full(self.encoded.ids.len(), collector)?;
        let end = Cut {
            token: self.encoded.ids.len(),
            byte: offset(self.text.len())?,
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
        let bytes = from.byte as usize..until.byte as usize;
        let text = self.text.get(bytes).unwrap_or_default();
        let shift = from.byte;
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
        let Cut { token, byte: shift } = std::mem::take(&mut self.next);
        self.text.drain(..shift as usize);
        self.encoded.ids.drain(..token);
        self.encoded.ranges.drain(..token);
        for (start, end) in &mut self.encoded.ranges {
            *start -= shift;
            *end -= shift;
        }
    }
}

/// Refuses more text in one window than a frame takes.
///
/// # Errors
/// `Windowing`.
pub(super) fn check_length(bytes: usize) -> Result<()> {
    if bytes <= TEXT_BYTES_MAX {
        return Ok(());
    }
    let tokens =
        "most of its text becomes no token of this tokenizer; lower seq_len, or take the text out";
    Err(Error::Windowing(format!(
        "a window of {bytes} bytes is above the limit of {TEXT_BYTES_MAX}: {tokens}"
    )))
}

/// Appends the tokens of a text whose bytes `overlap` are in `known` already.
///
/// A tokenizer that puts something before a text gets the first tokens of a piece wrong, and the last ones of the piece
/// before it may want what follows. So both are joined within the overlap, as near to its middle as two tokens in a row
/// are the same in both.
fn append(known: &mut Encoded, more: Encoded, overlap: Range<u32>) {
    let Range { start, end } = overlap;
    let middle = start.midpoint(end);
    let token =
        |encoded: &Encoded, at: usize| Some((*encoded.ids.get(at)?, *encoded.ranges.get(at)?));
    let mut place = None;
    for (at, pair) in more.ranges.windows(2).enumerate() {
        let [left, right] = pair else { continue };
        if right.0 >= end {
            break;
        }
        let distance = right.0.abs_diff(middle);
        if left.1 > right.0 || place.is_some_and(|(_, _, nearest)| nearest <= distance) {
            continue;
        }
        let same = known.ranges.partition_point(|range| range.0 < right.0);
        let agrees = same > 0
            && token(known, same - 1) == token(&more, at)
            && token(known, same) == token(&more, at + 1);
        if agrees {
            place = Some((same, at + 1, distance));
        }
    }
    // Without an overlap, or where they agree nowhere: what is known stays as it is.
    let (keep, skip) = place.map_or_else(
        || {
            let skip = more.ranges.partition_point(|range| range.0 < end);
            (known.ids.len(), if start < end { skip } else { 0 })
        },
        |(keep, skip, _)| (keep, skip),
    );
    known.ids.truncate(keep);
    known.ranges.truncate(keep);
    known.ids.extend(more.ids.into_iter().skip(skip));
    known.ranges.extend(more.ranges.into_iter().skip(skip));
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
        let byte = ranges.get(token)?.0;
        (end <= byte && text.is_char_boundary(byte as usize)).then_some(Cut { token, byte })
    })
}
