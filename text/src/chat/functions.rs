//! Provides the functions and filters that `transformers` gives chat templates beside Jinja's own.

use minijinja::{
    Error, ErrorKind, State, Value as Jinja, filters,
    value::{Kwargs, ValueKind},
};

use super::{python, spaces::is_space, values::LongInteger};

/// Bytes that one unit of the engine's fuel pays for.
const BYTES_PER_FUEL: usize = 64;

/// Pays for bytes that a function here wrote or walked over, as the engine's own functions do.
pub(super) fn charge(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_PER_FUEL) as u64)
}

/// What a function here wrote, paid for.
pub(super) fn charged(state: &State<'_, '_>, written: Jinja) -> Result<Jinja, Error> {
    charge(state, written.as_str().map_or(0, str::len))?;
    Ok(written)
}

/// An error of a template that asks for what is not there.
pub(super) fn wrong(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// `value | string`, and an operand of `~`.
pub(super) fn text(state: &State<'_, '_>, value: Jinja) -> Result<Jinja, Error> {
    if value.as_str().is_some() {
        return Ok(value);
    }
    charged(state, python::str(&value)?.into())
}

/// `raise_exception(message)`: a template refuses these messages.
pub(super) fn raise_exception(message: &str) -> Result<Jinja, Error> {
    Err(wrong(message))
}

/// `strftime_now(format)`: always 26 July 2024, 12:00.
///
/// A template that prints today's date (Llama 3.x) would give one corpus another fingerprint every day, and a cache that
/// was computed overnight would be refused in the morning. The date is the one those templates fall back to.
pub(super) fn strftime_now(format: &str) -> String {
    let mut out = String::with_capacity(format.len() + 16);
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut code = characters.next();
        if code == Some('-') {
            code = characters.next();
        }
        match code {
            Some('Y') => out.push_str("2024"),
            Some('y') => out.push_str("24"),
            Some('m') => out.push_str("07"),
            Some('d' | 'e') => out.push_str("26"),
            Some('B') => out.push_str("July"),
            Some('b' | 'h') => out.push_str("Jul"),
            Some('A') => out.push_str("Friday"),
            Some('a') => out.push_str("Fri"),
            Some('j') => out.push_str("208"),
            Some('H' | 'I') => out.push_str("12"),
            Some('M' | 'S') => out.push_str("00"),
            Some('p') => out.push_str("PM"),
            Some('F') => out.push_str("2024-07-26"),
            Some('T') => out.push_str("12:00:00"),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// `value | int(default=0, base=10)`: what is no number gives the default.
pub(super) fn int(
    state: &State<'_, '_>,
    value: &Jinja,
    default: Option<Jinja>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Jinja, Error> {
    let default = default.or(kwargs.get("default")?);
    let default = default.unwrap_or_else(|| Jinja::from(0));
    filters::int(state, &without_space(value), Some(default), base, kwargs)
}

/// `value | float(default=0.0)`: what is no number gives the default.
pub(super) fn float(
    state: &State<'_, '_>,
    value: &Jinja,
    default: Option<Jinja>,
    kwargs: Kwargs,
) -> Result<Jinja, Error> {
    let default = default.or(kwargs.get("default")?);
    let default = default.unwrap_or_else(|| Jinja::from(0.0));
    filters::float(state, &without_space(value), Some(default), kwargs)
}

/// `value | length`, which none does not have.
pub(super) fn length(value: &Jinja) -> Result<usize, Error> {
    if value.is_none() {
        return Err(wrong("length: none has no length"));
    }
    filters::length(value)
}

/// Python reads numbers with white space around them.
fn without_space(value: &Jinja) -> Jinja {
    let trimmed = value
        .as_str()
        .map(|text| Jinja::from(text.trim_matches(is_space)));
    trimmed.unwrap_or_else(|| value.clone())
}

/// `value is iterable`, where the engine counts none as an empty sequence.
pub(super) fn is_iterable(value: &Jinja) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// `value is sequence`: what has a length and parts, texts and dictionaries too.
pub(super) fn is_sequence(value: &Jinja) -> bool {
    match value.kind() {
        ValueKind::String | ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    }
}

/// `value is number`: Python's truth values are numbers too.
pub(super) fn is_number(value: &Jinja) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool) || is_long(value)
}

/// `value is integer`
pub(super) fn is_integer(value: &Jinja) -> bool {
    value.kind() == ValueKind::Number && value.is_integer() || is_long(value)
}

fn is_long(value: &Jinja) -> bool {
    value.downcast_object_ref::<LongInteger>().is_some()
}
