//! Provides the filters and functions of Jinja2 that the engine lacks or that write otherwise there.

use minijinja::{
    Error, State, Value as Jinja,
    value::{Kwargs, Rest, ValueOrKwargs, from_args},
};
pub(super) use minijinja_contrib::globals::joiner;

use super::{
    functions::{charge, charged, wrong},
    python::Bounded,
    spaces,
};

/// `text | indent(width=4, first=False, blank=False)`; the width may be the text that is written before a line.
pub(super) fn indent(
    state: &State<'_, '_>,
    arguments: Rest<ValueOrKwargs>,
) -> Result<Jinja, Error> {
    type Given<'a> = (&'a str, Option<Jinja>, Option<bool>, Option<bool>, Kwargs);
    let arguments = arguments.into_values();
    let (text, width, first, blank, named): Given<'_> = from_args(&arguments)?;
    let width = width.or(named.get("width")?);
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = blank.or(named.get("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let (before, count) = match &width {
        None => (" ", 4),
        Some(width) => match width.as_str() {
            Some(text) => (text, 1),
            // A negative number repeats nothing.
            None => (
                " ",
                usize::try_from(i64::try_from(width.clone())?).unwrap_or(0),
            ),
        },
    };
    let mut out = Bounded::default();
    // Jinja2 adds a line break and takes it off again, so that a last empty line counts.
    let text = format!("{text}\n");
    for (index, line) in spaces::lines(&text, false).into_iter().enumerate() {
        if index > 0 {
            out.push("\n")?;
        }
        if if index == 0 {
            first
        } else {
            blank || !line.is_empty()
        } {
            out.repeat(before, count)?;
        }
        out.push(line)?;
    }
    charged(state, out.into_text().into())
}

/// `text | truncate(length=255, killwords=False, end='...', leeway=5)`.
pub(super) fn truncate(
    state: &State<'_, '_>,
    arguments: Rest<ValueOrKwargs>,
) -> Result<Jinja, Error> {
    type Given<'a> = (
        &'a str,
        Option<usize>,
        Option<bool>,
        Option<String>,
        Option<usize>,
    );
    let (arguments, named) = split_named(arguments.into_values())?;
    let (text, length, cuts_words, end, leeway): Given<'_> = from_args(&arguments)?;
    let length = length.or(named.get("length")?).unwrap_or(255);
    let cuts_words = cuts_words.or(named.get("killwords")?).unwrap_or(false);
    let end = end
        .or(named.get("end")?)
        .unwrap_or_else(|| "...".to_owned());
    let leeway = leeway.or(named.get("leeway")?).unwrap_or(5);
    named.assert_all_used()?;
    charge(state, text.len())?;
    let kept = length.checked_sub(end.chars().count());
    let kept = kept.ok_or_else(|| wrong("truncate: the length is less than that of the end"))?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(Jinja::from(text));
    }
    let at = text
        .char_indices()
        .nth(kept)
        .map_or(text.len(), |(at, _)| at);
    let mut head = text.get(..at).unwrap_or_default();
    if !cuts_words {
        head = head.rsplit_once(' ').map_or(head, |(words, _)| words);
    }
    Ok(Jinja::from(format!("{head}{end}")))
}

/// `text | wordcount`: runs of letters, digits and underscores.
pub(super) fn wordcount(state: &State<'_, '_>, text: &Jinja) -> Result<usize, Error> {
    let text = super::python::str(text)?;
    charge(state, text.len())?;
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    Ok(words.filter(|word| !word.is_empty()).count())
}

/// Arguments, and those of them that have names.
pub(super) fn split_named(mut arguments: Vec<Jinja>) -> Result<(Vec<Jinja>, Kwargs), Error> {
    let named = match arguments.pop_if(|last| last.is_kwargs()) {
        Some(named) => Kwargs::try_from(named)?,
        None => Kwargs::from_iter(std::iter::empty::<(String, Jinja)>()),
    };
    Ok((arguments, named))
}
