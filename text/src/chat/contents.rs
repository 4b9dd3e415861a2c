//! Provides where the words of a message are in the rendering, as far as the template writes them as they stand.
//!
//! A template may trim a message's text, drop a thought from it or replace parts. So a place in the text is found by
//! rendering once more with a mark there: where the rendering is otherwise the same, the mark is where that byte went. From
//! there on, text and rendering are compared in both directions, and what is equal is one *stretch*.

use std::{cell::RefCell, collections::BTreeMap, ops::Range};

use super::locate::{Locator, Marking, split_at_mark};
use crate::json::Json;

/// Finds the words of messages in one rendering.
pub(crate) struct Contents<'a> {
    locator: Locator<'a>,
    /// What was found so far, by message: a record may name thousands of places in one.
    found: RefCell<BTreeMap<usize, Vec<Stretch>>>,
}

/// A part of a message's text that the rendering has as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    /// Bytes of the text.
    content: Range<usize>,
    /// The first of them in the rendering.
    start: usize,
}

impl Stretch {
    /// Where the rendering has these bytes of the text, where all of them are in the stretch.
    fn rendered(&self, bytes: &Range<usize>) -> Option<Range<usize>> {
        let within = self.content.start <= bytes.start && bytes.end <= self.content.end;
        let start = (self.start + bytes.start).checked_sub(self.content.start)?;
        within.then(|| start..start + bytes.len())
    }
}

impl<'a> Contents<'a> {
    pub fn new(locator: Locator<'a>) -> Self {
        Self {
            locator,
            found: RefCell::default(),
        }
    }

    /// Where the rendering has `bytes` of the text of message `index`; `None` where it has not all of them as they stand.
    pub fn find(&self, index: usize, bytes: &Range<usize>) -> Option<Range<usize>> {
        let known = |stretches: &Vec<Stretch>| {
            let mut stretches = stretches.iter();
            stretches.find_map(|stretch| stretch.rendered(bytes))
        };
        if let Some(range) = self.found.borrow().get(&index).and_then(known) {
            return Some(range);
        }
        let content = self.content(index)?;
        let middle = content.floor_char_boundary(content.len() / 2);
        let after_words = content.trim_end().len();
        let before_words = content.len() - content.trim_start().len();
        // In the middle and beside the words a mark disturbs least what templates look for at both ends.
        let places = [middle, after_words, before_words, bytes.start, bytes.end];
        places.into_iter().find_map(|place| {
            let stretch = self.stretch(index, content, place)?;
            let range = stretch.rendered(bytes);
            let mut found = self.found.borrow_mut();
            let known = found.entry(index).or_default();
            if !known.contains(&stretch) {
                known.push(stretch);
            }
            range
        })
    }

    /// The longest end of `bytes` of the text of message `index` that the rendering has as it stands: which bytes, and where.
    pub fn find_end(
        &self,
        index: usize,
        bytes: &Range<usize>,
    ) -> Option<(Range<usize>, Range<usize>)> {
        if let Some(range) = self.find(index, bytes) {
            return Some((bytes.clone(), range));
        }
        let found = self.found.borrow();
        let ends = found.get(&index)?.iter().filter_map(|stretch| {
            let end = stretch.content.start.max(bytes.start)..bytes.end;
            let rendered = (!end.is_empty()).then(|| stretch.rendered(&end))??;
            Some((end, rendered))
        });
        ends.max_by_key(|(end, _)| end.len())
    }

    fn content(&self, index: usize) -> Option<&str> {
        let message = self.locator.dialogue().messages.get(index)?;
        message.get("content").and_then(Json::as_str)
    }

    /// The stretch around byte `place` of the text.
    fn stretch(&self, index: usize, content: &str, place: usize) -> Option<Stretch> {
        let count = self.locator.dialogue().messages.len();
        let marked = self
            .locator
            .render(count, false, Some((index, Marking::At(place))))?;
        let (before, after) = split_at_mark(&marked)?;
        let text = self.locator.text();
        // Nothing but the mark may tell the two renderings apart.
        if text.strip_prefix(before)? != after {
            return None;
        }
        let (left, right) = content.split_at_checked(place)?;
        let back = common(left.bytes().rev(), before.bytes().rev());
        let first = content.ceil_char_boundary(place - back);
        let last = content.floor_char_boundary(place + common(right.bytes(), after.bytes()));
        Some(Stretch {
            content: first..last,
            start: before.len() - (place - first),
        })
    }
}

/// How many bytes two texts have in common from their starts on.
fn common(one: impl Iterator<Item = u8>, other: impl Iterator<Item = u8>) -> usize {
    one.zip(other).take_while(|(a, b)| a == b).count()
}
