//! Provides what lies in a template's `{% generation %}` blocks: the assistant's text, as the template itself marks it.
//!
//! `transformers` makes such a block a call whose body is rendered on its own, and so does [`as_calls`]. The call puts a
//! mark before and after what it rendered, and [`take_marks`] finds the marks wherever loops, macros and filters carried
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

/// Replaces the tags of `{% generation %}` blocks by calls of [`CALL`], whitespace control included; with whether there
/// were any.
pub(super) fn as_calls(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut found = false;
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end);
        let word = tag
            .trim_start_matches("{%")
            .trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        match word {
            "generation" => {
                found = true;
                out.push_str(&tag.replacen(word, &format!("call {CALL}()"), 1));
            }
            "endgeneration" => out.push_str(&tag.replacen(word, "endcall", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    (out, found)
}
