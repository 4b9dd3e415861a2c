//! Provides the functions and filters that `transformers` gives chat templates beside Jinja's own.

use std::io;

use minijinja::{
    Error, ErrorKind, Value as Jinja,
    value::{Kwargs, Rest},
};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `raise_exception(message)`: a template refuses these messages.
pub(super) fn raise_exception(message: &str) -> Result<Jinja, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
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

/// `value | tojson(indent=..)` as Python's `json.dumps(value, ensure_ascii=False, indent=..)` writes it, without the HTML
/// escapes of Jinja's own filter.
pub(super) fn tojson(
    value: Jinja,
    positional: Rest<Jinja>,
    kwargs: Kwargs,
) -> Result<Jinja, Error> {
    let indent: Option<usize> = match positional.first() {
        Some(indent) if !indent.is_none() => Some(usize::try_from(indent.clone())?),
        _ => kwargs.get("indent")?,
    };
    // Accepted for the sake of templates that name them; their usual values are what is written anyway.
    for name in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Jinja> = kwargs.get(name)?;
    }
    kwargs.assert_all_used()?;
    let written = match indent {
        None => write_json(&value, PythonFormatter),
        Some(width) => {
            let indent = vec![b' '; width.min(16)];
            write_json(&value, PrettyFormatter::with_indent(&indent))
        }
    };
    written
        .map(Jinja::from_safe_string)
        .map_err(|reason| Error::new(ErrorKind::BadSerialization, reason))
}

fn write_json(value: &Jinja, formatter: impl Formatter) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, formatter);
    value
        .serialize(&mut serializer)
        .map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

/// One line with a space after `,` and `:`.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
