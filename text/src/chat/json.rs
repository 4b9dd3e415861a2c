//! Provides `tojson` as `transformers` gives it to templates: Python's `json.dumps`, without the HTML escapes of Jinja's own.

use minijinja::{
    Error, State, Value as Jinja,
    value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args},
};

use super::{
    functions::{charged, wrong},
    python::{Bounded, float_repr, too_deep},
    values::LongInteger,
};
use crate::limits::{VALUE_DEPTH_MAX, VALUE_ITEMS_MAX};

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Jinja,
    arguments: Rest<ValueOrKwargs>,
) -> Result<Jinja, Error> {
    let writer = Writer::from_arguments(&arguments.into_values())?;
    let mut out = Bounded::default();
    writer.write(&mut out, value, 0)?;
    charged(state, Jinja::from_safe_string(out.into_text()))
}

struct Writer {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

impl Writer {
    fn from_arguments(arguments: &[Jinja]) -> Result<Self, Error> {
        type Arguments = (
            Option<Jinja>,
            Option<Jinja>,
            Option<Jinja>,
            Option<Jinja>,
            Kwargs,
        );
        let (ensure_ascii, indent, separators, sort_keys, kwargs): Arguments =
            from_args(arguments)?;
        let named = |given: Option<Jinja>, name: &str| -> Result<Option<Jinja>, Error> {
            let value = match given {
                Some(value) => Some(value),
                None => kwargs.get::<Option<Jinja>>(name)?,
            };
            Ok(value.filter(|value| !value.is_none()))
        };
        let ensure_ascii = named(ensure_ascii, "ensure_ascii")?;
        let indent = named(indent, "indent")?.map(indentation).transpose()?;
        let separators = named(separators, "separators")?;
        let sort_keys = named(sort_keys, "sort_keys")?;
        kwargs.assert_all_used()?;
        let (item_separator, key_separator) = match separators {
            Some(pair) => pair_of_texts(&pair)?,
            None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            None => (", ".to_owned(), ": ".to_owned()),
        };
        Ok(Self {
            ensure_ascii: ensure_ascii.is_some_and(|value| value.is_true()),
            indent,
            item_separator,
            key_separator,
            sort_keys: sort_keys.is_some_and(|value| value.is_true()),
        })
    }

    fn write(&self, out: &mut Bounded, value: &Jinja, depth: usize) -> Result<(), Error> {
        if depth > VALUE_DEPTH_MAX {
            return Err(too_deep());
        }
        match value.kind() {
            ValueKind::String => self.write_text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked().take(VALUE_ITEMS_MAX + 1);
                let items: Vec<Jinja> = items.collect::<Result<_, _>>()?;
                self.write_between(out, ['[', ']'], depth, &items, |out, item| {
                    self.write(out, item, depth + 1)
                })
            }
            ValueKind::Map => {
                let mut keys: Vec<Jinja> = value.try_iter()?.checked().collect::<Result<_, _>>()?;
                if self.sort_keys {
                    sort(&mut keys)?;
                }
                self.write_between(out, ['{', '}'], depth, &keys, |out, key| {
                    match key.as_str() {
                        Some(text) => self.write_text(out, text)?,
                        None => self.write_text(out, &scalar(key)?)?,
                    }
                    out.push(&self.key_separator)?;
                    self.write(out, &value.get_item(key)?, depth + 1)
                })
            }
            _ => out.push(&scalar(value)?),
        }
    }

    fn write_between(
        &self,
        out: &mut Bounded,
        [start, end]: [char; 2],
        depth: usize,
        items: &[Jinja],
        mut write: impl FnMut(&mut Bounded, &Jinja) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(start.encode_utf8(&mut [0; 4]))?;
        for (index, item) in items.iter().enumerate() {
            out.count_item()?;
            if index > 0 {
                out.push(&self.item_separator)?;
            }
            self.break_line(out, depth + 1)?;
            write(out, item)?;
        }
        if !items.is_empty() {
            self.break_line(out, depth)?;
        }
        out.push(end.encode_utf8(&mut [0; 4]))
    }

    fn break_line(&self, out: &mut Bounded, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        out.push("\n")?;
        out.repeat(indent, depth)
    }

    fn write_text(&self, out: &mut Bounded, text: &str) -> Result<(), Error> {
        out.push("\"")?;
        let mut rest = text;
        let escapes = |c: char| {
            matches!(c, '"' | '\\') || c < ' ' || self.ensure_ascii && !(' '..='~').contains(&c)
        };
        while let Some(at) = rest.find(escapes) {
            let (plain, from) = rest.split_at(at);
            out.push(plain)?;
            let mut characters = from.chars();
            if let Some(character) = characters.next() {
                out.push(&escape(character))?;
            }
            rest = characters.as_str();
        }
        out.push(rest)?;
        out.push("\"")
    }
}

fn escape(character: char) -> String {
    match character {
        '"' => "\\\"".to_owned(),
        '\\' => "\\\\".to_owned(),
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        '\u{8}' => "\\b".to_owned(),
        '\u{c}' => "\\f".to_owned(),
        other => {
            let units = other.encode_utf16(&mut [0; 2]).to_vec();
            units.iter().map(|unit| format!("\\u{unit:04x}")).collect()
        }
    }
}

/// A value without parts, which is also what a key may be.
fn scalar(value: &Jinja) -> Result<String, Error> {
    match value.kind() {
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number if value.is_integer() => Ok(value.to_string()),
        ValueKind::Number => {
            let float = f64::try_from(value.clone())?;
            Ok(match float_repr(float).as_str() {
                "nan" => "NaN".to_owned(),
                "inf" => "Infinity".to_owned(),
                "-inf" => "-Infinity".to_owned(),
                finite => finite.to_owned(),
            })
        }
        _ if value.downcast_object_ref::<LongInteger>().is_some() => Ok(value.to_string()),
        kind => Err(wrong(format!(
            "tojson cannot write a value of the kind {kind}"
        ))),
    }
}

/// Texts by code point, as Python compares them; otherwise numbers by size.
fn sort(keys: &mut [Jinja]) -> Result<(), Error> {
    let texts = keys.iter().filter(|key| key.as_str().is_some()).count();
    if texts != 0 && texts != keys.len() {
        return Err(wrong(
            "tojson(sort_keys=true) cannot compare keys of different kinds",
        ));
    }
    keys.sort_by(|a, b| match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => a.cmp(b),
        _ => a.cmp(b),
    });
    Ok(())
}

/// A number of spaces, of which there are none below 0, or the text itself.
fn indentation(indent: Jinja) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return Ok(text.to_owned());
    }
    let count = i128::try_from(indent)
        .map_err(|_| wrong("tojson's `indent` must be a whole number or a text"))?;
    let mut spaces = Bounded::default();
    spaces.repeat(" ", usize::try_from(count.max(0)).unwrap_or(usize::MAX))?;
    Ok(spaces.into_text())
}

fn pair_of_texts(pair: &Jinja) -> Result<(String, String), Error> {
    let texts: Vec<Jinja> = pair.try_iter()?.take(3).collect();
    match texts.as_slice() {
        [item, key] => match (item.as_str(), key.as_str()) {
            (Some(item), Some(key)) => Ok((item.to_owned(), key.to_owned())),
            _ => Err(wrong("tojson's `separators` must be two texts")),
        },
        _ => Err(wrong("tojson's `separators` must be two texts")),
    }
}
