//! Provides values as Python prints them: `str(value)` and `repr(value)`.

use minijinja::{
    Error, ErrorKind, Value as Jinja,
    value::{Tuple, ValueKind},
};

use crate::limits::{RENDERING_BYTES_MAX, VALUE_DEPTH_MAX, VALUE_ITEMS_MAX};

/// A text that is being written, bounded: no value that a template prints may be longer than a rendering.
#[derive(Default)]
pub(super) struct Bounded {
    text: String,
    items: usize,
}

impl Bounded {
    pub fn push(&mut self, text: &str) -> Result<(), Error> {
        self.repeat(text, 1)
    }

    pub fn repeat(&mut self, text: &str, count: usize) -> Result<(), Error> {
        let more = text.len().saturating_mul(count);
        if self.text.len().saturating_add(more) > RENDERING_BYTES_MAX {
            return Err(too_long());
        }
        for _ in 0..count {
            self.text.push_str(text);
        }
        Ok(())
    }

    /// Counts an entry of a list or object: the engine makes some of them on the way, without end and one by one.
    pub fn count_item(&mut self) -> Result<(), Error> {
        self.items += 1;
        if self.items > VALUE_ITEMS_MAX {
            return Err(too_long());
        }
        Ok(())
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

pub(super) fn too_long() -> Error {
    let reason = format!(
        "a text would be longer than {RENDERING_BYTES_MAX} bytes or {VALUE_ITEMS_MAX} entries"
    );
    Error::new(ErrorKind::InvalidOperation, reason)
}

pub(super) fn too_deep() -> Error {
    let reason = format!("lists and objects lie more than {VALUE_DEPTH_MAX} deep in each other");
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// `str(value)`; an undefined value is an empty text.
pub(super) fn str(value: &Jinja) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let mut out = Bounded::default();
    if !value.is_undefined() {
        write_repr(&mut out, value, 0)?;
    }
    Ok(out.into_text())
}

/// Writes `repr(value)`.
fn write_repr(out: &mut Bounded, value: &Jinja, depth: usize) -> Result<(), Error> {
    if depth > VALUE_DEPTH_MAX {
        return Err(too_deep());
    }
    if let Some(tuple) = value.downcast_object_ref::<Tuple>() {
        let end = if tuple.len() == 1 { ",)" } else { ")" };
        return write_items(out, value, ["(", end], depth);
    }
    match value.kind() {
        ValueKind::Undefined => out.push("Undefined"),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(float) => out.push(&float_repr(float)),
            Err(_) => out.push(&value.to_string()),
        },
        // The engine's own `{:?}` of a text is Python's but for these characters.
        ValueKind::String => out.push(&with_escapes(&format!("{value:?}"))),
        ValueKind::Seq | ValueKind::Iterable => write_items(out, value, ["[", "]"], depth),
        ValueKind::Map => {
            out.push("{")?;
            for (index, key) in value.try_iter()?.enumerate() {
                out.count_item()?;
                if index > 0 {
                    out.push(", ")?;
                }
                write_repr(out, &key, depth + 1)?;
                out.push(": ")?;
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push("}")
        }
        _ => out.push(&value.to_string()),
    }
}

fn write_items(
    out: &mut Bounded,
    list: &Jinja,
    [start, end]: [&str; 2],
    depth: usize,
) -> Result<(), Error> {
    out.push(start)?;
    for (index, item) in list.try_iter()?.checked().enumerate() {
        out.count_item()?;
        if index > 0 {
            out.push(", ")?;
        }
        write_repr(out, &item?, depth + 1)?;
    }
    out.push(end)
}

/// `repr(float)`: the shortest digits that read back as this number, with an exponent from 1e16 on and below 1e-4.
pub(super) fn float_repr(float: f64) -> String {
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{float:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// Escapes what Python calls unprintable and the engine does not: white space other than the space, and marks of format.
fn with_escapes(repr: &str) -> String {
    let unprintable = |c: char| {
        matches!(c,
            '\u{a0}' | '\u{ad}' | '\u{61c}' | '\u{1680}' | '\u{180e}' | '\u{2000}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}' | '\u{3000}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0001}'..='\u{e007f}'
            | '\u{f0000}'..='\u{10ffff}')
    };
    if !repr.contains(unprintable) {
        return repr.to_owned();
    }
    let mut out = String::with_capacity(repr.len() + 8);
    for character in repr.chars() {
        match u32::from(character) {
            _ if !unprintable(character) => out.push(character),
            code @ ..=0xff => out += &format!("\\x{code:02x}"),
            code @ ..=0xffff => out += &format!("\\u{code:04x}"),
            code => out += &format!("\\U{code:08x}"),
        }
    }
    out
}
