//! Provides white space and line breaks as Python has them: four separators of ASCII are space to it and to nobody else.

use minijinja::{Error, State, Value as Jinja, value::Kwargs};

use super::functions::charge;

/// `str.isspace` of one character.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// What ends a line for `str.splitlines`.
fn is_break(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// `text.strip(chars)`, `lstrip` and `rstrip`.
pub(super) fn strip<'t>(text: &'t str, name: &str, chars: Option<&str>) -> &'t str {
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    match name {
        "lstrip" => text.trim_start_matches(goes),
        "rstrip" => text.trim_end_matches(goes),
        _ => text.trim_matches(goes),
    }
}

/// `value | trim(chars=None)`.
pub(super) fn trim(
    state: &State<'_, '_>,
    text: &str,
    chars: Option<&str>,
    kwargs: Kwargs,
) -> Result<Jinja, Error> {
    let chars = chars.or(kwargs.get("chars")?);
    kwargs.assert_all_used()?;
    charge(state, text.len())?;
    Ok(Jinja::from(strip(text, "strip", chars)))
}

/// `text.split(None, most)`: the words, of which the last holds the rest after `most` cuts.
pub(super) fn words(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while let Some((word, after)) = rest.split_once(is_space).filter(|_| words.len() < most) {
        words.push(word);
        rest = after.trim_start_matches(is_space);
    }
    words.extend((!rest.is_empty()).then_some(rest));
    words
}

/// As [`words`], cut from the end on; the first of them last.
pub(super) fn words_from_end(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while let Some((before, word)) = rest.rsplit_once(is_space).filter(|_| words.len() < most) {
        words.push(word);
        rest = before.trim_end_matches(is_space);
    }
    words.extend((!rest.is_empty()).then_some(rest));
    words
}

/// `text.splitlines(keepends)`.
pub(super) fn lines(text: &str, keeps_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((line, after)) = rest.split_once(is_break) {
        // A carriage return and a line feed are one break.
        let after = match rest.strip_prefix(line) {
            Some(ended) => ended.strip_prefix("\r\n").unwrap_or(after),
            None => after,
        };
        let with_end = rest.strip_suffix(after).unwrap_or(line);
        lines.push(if keeps_ends { with_end } else { line });
        rest = after;
    }
    lines.extend((!rest.is_empty()).then_some(rest));
    lines
}
