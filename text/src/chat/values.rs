//! Provides the values that a template sees: those of a row, and the bounds of what it makes of them.

use std::{fmt, sync::Arc};

use minijinja::{
    Error, ErrorKind, State, Value as Jinja,
    value::{Object, ObjectRepr, ValueKind},
};
use serde_json::{Map, Value};

use super::{
    functions::charge,
    python::{too_deep, too_long},
};
use crate::limits::{VALUE_BYTES_MAX, VALUE_DEPTH_MAX};

/// Name of the only entry of an object that stands for a JSON number which `serde_json` cannot hold; the entry is its text:
/// the digits of an integer above 64 bits, `NaN`, `Infinity` or `-Infinity`. The name is no text that JSON files have.
pub(crate) const NUMBER: &str = "\u{fdd0}number";

/// An integer above 128 bits, which a template can only print.
#[derive(Debug)]
pub(super) struct LongInteger(String);

impl Object for LongInteger {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A value of a row.
pub(super) fn to_jinja(value: &Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(bool) => Jinja::from(*bool),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Jinja::from(integer),
            (_, Some(integer)) => Jinja::from(integer),
            _ => Jinja::from(number.as_f64()),
        },
        Value::String(text) => Jinja::from(text.as_str()),
        Value::Array(items) => items.iter().map(to_jinja).collect::<Vec<_>>().into(),
        Value::Object(map) => match map.get(NUMBER) {
            Some(Value::String(text)) if map.len() == 1 => number(text),
            _ => object(map),
        },
    }
}

fn object(map: &Map<String, Value>) -> Jinja {
    Jinja::from_pairs(
        map.iter()
            .map(|(name, value)| (name.as_str(), to_jinja(value))),
    )
}

fn number(text: &str) -> Jinja {
    if let Ok(integer) = text.parse::<i128>() {
        return Jinja::from(integer);
    }
    if let Ok(integer) = text.parse::<u128>() {
        return Jinja::from(integer);
    }
    match text {
        "NaN" => Jinja::from(f64::NAN),
        "Infinity" => Jinja::from(f64::INFINITY),
        "-Infinity" => Jinja::from(f64::NEG_INFINITY),
        _ => Jinja::from_object(LongInteger(text.to_owned())),
    }
}

/// Names under which messages hold what an assistant thought; `transformers` gives templates the first of them and
/// `thinking`, whichever of them a row has.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Messages as `transformers` hands them to a template: entries that are null are left out, and thoughts have both names.
pub(super) fn messages(messages: &Value) -> Jinja {
    let Some(list) = messages.as_array() else {
        return to_jinja(messages);
    };
    let list = list.iter().map(|message| match message {
        Value::Object(map) => message_of(map),
        other => to_jinja(other),
    });
    list.collect::<Vec<_>>().into()
}

fn message_of(map: &Map<String, Value>) -> Jinja {
    let given = |name: &str| map.get(name).filter(|value| !value.is_null());
    let entries = map.iter().filter(|(_, value)| !value.is_null());
    let mut entries: Vec<(&str, Jinja)> = entries
        .map(|(name, value)| (name.as_str(), to_jinja(value)))
        .collect();
    if let Some(reasoning) = REASONING.into_iter().find_map(given) {
        let reasoning = to_jinja(reasoning);
        let thinking = entries.iter().position(|(name, _)| *name == "thinking");
        let thinking = match thinking {
            Some(at) => entries.remove(at),
            None => ("thinking", reasoning.clone()),
        };
        entries.insert(0, thinking);
        if given("reasoning_content").is_none() {
            entries.push(("reasoning_content", reasoning));
        }
    }
    Jinja::from_pairs(entries)
}

/// Bounds a value before a variable takes it: what lies in it and how deep. Without that, a few loops make a value whose
/// printing, comparing or dropping needs more stack or memory than there is.
///
/// A part of a list, which the engine makes again each time it is read, becomes a list.
pub(super) fn bound(state: &State<'_, '_>, value: Jinja) -> Result<Jinja, Error> {
    bound_within(state, value, true)
}

/// [`bound`] for what a namespace takes; a namespace that lay in itself would have no end.
pub(super) fn bound_for_namespace(state: &State<'_, '_>, value: Jinja) -> Result<Jinja, Error> {
    bound_within(state, value, false)
}

fn bound_within(state: &State<'_, '_>, value: Jinja, namespaces: bool) -> Result<Jinja, Error> {
    let mut measure = Measure {
        namespaces,
        ..Measure::default()
    };
    if !measure.is_container(&value) {
        return Ok(value);
    }
    let value = if value.kind() == ValueKind::Iterable {
        let items = value
            .try_iter()?
            .checked()
            .take(VALUE_BYTES_MAX / VALUE_BYTES);
        Jinja::from(items.collect::<Result<Vec<_>, _>>()?)
    } else {
        value
    };
    measure.add(&value, 0)?;
    charge(state, measure.values * VALUE_BYTES)?;
    Ok(value)
}

/// Bytes that a value takes beside its text.
const VALUE_BYTES: usize = 24;

#[derive(Default)]
struct Measure {
    namespaces: bool,
    values: usize,
    bytes: usize,
}

impl Measure {
    fn is_container(&self, value: &Jinja) -> bool {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
        )
    }

    fn add(&mut self, value: &Jinja, depth: usize) -> Result<(), Error> {
        self.values += 1;
        let text = value.as_str().map_or(0, str::len);
        self.bytes = self.bytes.saturating_add(text + VALUE_BYTES);
        if self.bytes > VALUE_BYTES_MAX {
            return Err(too_long());
        }
        if !self.is_container(value) {
            return Ok(());
        }
        if depth > VALUE_DEPTH_MAX {
            return Err(too_deep());
        }
        let object = value.as_object();
        if !self.namespaces && object.is_some_and(|o| o.type_name().ends_with("::Namespace")) {
            let reason = "a namespace cannot lie in a namespace";
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
        let is_map = value.kind() == ValueKind::Map;
        for item in value.try_iter()?.checked() {
            let item = item?;
            self.add(&item, depth + 1)?;
            if is_map {
                self.add(&value.get_item(&item)?, depth + 1)?;
            }
        }
        Ok(())
    }
}
