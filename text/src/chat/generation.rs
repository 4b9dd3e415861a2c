//! Provides what lies in a template's `{% generation %}` blocks: the assistant's text, as the template itself marks it.
//!
//! `transformers` makes such a block a call whose body is rendered on its own, and so does [`super::source`]. The call puts
//! a mark before and after what it rendered, and [`take_marks`] finds the marks wherever loops, macros and filters carried
//! them. The marks are noncharacters, which Unicode keeps for such inner use.

use std::ops::Range;

use minijinja::{Error, State, Value as Jinja, value::Kwargs};

/// Name by which a template calls what stands for `{% generation %}`.
pub(super) const CALL: &str = "__generation";

const START: char = '\u{fdd0}';
const END: char = '\u{fdd1}';

/// Renders the body of a block; the same as without the block.
pub(super) fn plain(state: &mut State<'_, '_>, kwargs: Kwargs) -> Result<Jinja, Error> {
    kwargs.get::<Jinja>("caller")?.call(state, &[])
}

/// Renders the body of a block between marks.
pub(super) fn marked(state: &mut State<'_, '_>, kwargs: Kwargs) -> Result<String, Error> {
    let body = plain(state, kwargs)?;
    Ok(format!("{START}{body}{END}"))
}

/// Takes the marks out of a rendering; ranges are bytes of the text without them. `None` where a mark lacks its other half.
pub(super) fn take_marks(marked: &str) -> Option<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(marked.len());
    let (mut open, mut ranges) = (Vec::new(), Vec::new());
    let mut rest = marked;
    while let Some((before, after)) = rest.split_once([START, END]) {
        text.push_str(before);
        if rest.get(before.len()..)?.starts_with(START) {
            open.push(text.len());
        } else {
            ranges.push(open.pop()?..text.len());
        }
        rest = after;
    }
    text.push_str(rest);
    ranges.sort_by_key(|range| range.start);
    open.is_empty().then_some((text, ranges))
}
