//! Provides a frame's text in the student's tokens, and which of them are targets.

use std::ops::Range;

use distill_proto::Frame;
use distill_text::TokenizerFiles;

use crate::Result;

/// A text in the student's tokens.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    pub ids: Vec<u32>,
    /// Byte range of every token in the text; empty for tokens without text of their own.
    pub ranges: Vec<(u32, u32)>,
    /// Nothing was cut off.
    pub whole: bool,
}

/// Encodes the text of a frame: what the student puts before every text, the text, and `end` where the text ends.
///
/// `replaced` are ranges that become the student's end-of-text. The pieces between them are encoded by themselves, as
/// the library does around its own special tokens.
///
/// # Errors
/// The student's tokenizer cannot represent the text.
pub(super) fn encode(
    student: &TokenizerFiles,
    frame: &Frame,
    replaced: &[Range<usize>],
    end: Option<u32>,
) -> Result<Tokens> {
    let mut tokens = Tokens {
        whole: true,
        ..Tokens::default()
    };
    let mut from = 0;
    for range in replaced {
        // Ranges come from the wire; one that overlaps another or divides a character is left as text.
        let (Some(piece), Some(_)) = (
            frame.text.get(from..range.start),
            frame.text.get(range.clone()),
        ) else {
            continue;
        };
        tokens.push_text(student, piece, from)?;
        if let Some(eos) = student.eos_id() {
            tokens.push(eos, range.clone());
        }
        from = range.end;
    }
    tokens.push_text(student, frame.text.get(from..).unwrap_or_default(), from)?;
    tokens.put_before(student.prefix_ids());
    if let Some(eos) = end {
        tokens.push(eos, frame.text.len()..frame.text.len());
    }
    Ok(tokens)
}

impl Tokens {
    fn push(&mut self, id: u32, range: Range<usize>) {
        self.ids.push(id);
        self.ranges.push((range.start as u32, range.end as u32));
    }

    fn push_text(&mut self, student: &TokenizerFiles, text: &str, at: usize) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let encoded = student.encode(text)?;
        let shift = at as u32;
        let ranges = encoded.ranges.iter();
        self.ranges
            .extend(ranges.map(|(start, end)| (start + shift, end + shift)));
        self.ids.extend(encoded.ids);
        Ok(())
    }

    fn put_before(&mut self, prefix: &[u32]) {
        if self.ids.starts_with(prefix) {
            return;
        }
        self.ids.splice(0..0, prefix.iter().copied());
        self.ranges.splice(0..0, prefix.iter().map(|_| (0, 0)));
    }

    /// Cuts the end off so that at most `limit` tokens remain. Gives the byte where the rest ends.
    pub fn truncate(&mut self, limit: usize, text_bytes: usize) -> usize {
        let Some(&(cut, _)) = self.ranges.get(limit) else {
            return text_bytes;
        };
        self.ids.truncate(limit);
        self.ranges.truncate(limit);
        self.whole = false;
        cut as usize
    }

    /// Positions of the targets: tokens, not the first, with a byte that the teacher's targets cover, and an end-of-text
    /// without bytes (`textless_end`) where the teacher's is a target. A token across the border of what is to be
    /// generated has bytes of it, so it is a target.
    pub fn targets(&self, frame: &Frame, textless_end: bool) -> Vec<usize> {
        let spans = spans(frame);
        let end = textless_end && self.whole && frame.target_mask.last() == Some(&true);
        let last = self.ids.len().saturating_sub(1);
        let is_target = |t: usize, (start, ending): (u32, u32)| {
            if start < ending {
                let next = spans.partition_point(|span| span.end <= start);
                spans.get(next).is_some_and(|span| span.start < ending)
            } else {
                end && t == last
            }
        };
        let ranges = self.ranges.iter().enumerate().skip(1);
        ranges
            .filter_map(|(t, &range)| is_target(t, range).then_some(t))
            .collect()
    }
}

/// The bytes of the teacher's targets, as ranges in order that do not touch.
fn spans(frame: &Frame) -> Vec<Range<u32>> {
    let targets = frame.byte_offsets.iter().zip(&frame.target_mask);
    let mut ranges: Vec<Range<u32>> = targets
        .filter(|((start, end), target)| **target && start < end)
        .map(|(&(start, end), _)| start..end)
        .collect();
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut spans: Vec<Range<u32>> = Vec::new();
    for range in ranges {
        match spans.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => spans.push(range),
        }
    }
    spans
}
