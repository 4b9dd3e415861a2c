//! Provides JSON as Python's `json` reads it, which is what corpora are written for.
//!
//! `serde_json` differs where it matters: it refuses `NaN` and `Infinity`, rounds integers above 64 bits, and refuses a
//! whole line for a lone surrogate in a field that nobody reads. Of a name that stands twice in an object Python takes the last
//! value without a word; here none is taken, since one of the two was not meant.

mod parse;
mod write;

use indexmap::IndexMap;
use serde_json::{Map, Number, Value};

use crate::chat::NUMBER;
pub(crate) use parse::parse;

/// Fields in the order of the text; a name that stands twice has no usable value.
pub(crate) type Object = IndexMap<String, Json>;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Integer(i64),
    /// The digits of an integer above 64 bits, with its sign.
    LongInteger(String),
    /// Infinities and NaN included.
    Float(f64),
    String(String),
    Array(Vec<Json>),
    Object(Object),
    /// What is not taken for a value, and why. It may stand where nobody reads it.
    Unusable(&'static str),
}

impl Json {
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn is_null(&self) -> bool {
        *self == Self::Null
    }

    /// What a value is called in a message to people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Integer(_) | Self::LongInteger(_) | Self::Float(_) => "a number",
            Self::String(_) => "a text",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
            Self::Unusable(reason) => reason,
        }
    }

    /// Why this value cannot be used, where something in it cannot.
    pub fn unusable(&self) -> Option<&'static str> {
        match self {
            Self::Unusable(reason) => Some(reason),
            Self::Array(values) => values.iter().find_map(Self::unusable),
            Self::Object(fields) => fields.values().find_map(Self::unusable),
            _ => None,
        }
    }
}

/// Takes a field out of an object; null counts as absent.
pub(crate) fn take(fields: &mut Object, name: &str) -> Option<Json> {
    fields.shift_remove(name).filter(|value| !value.is_null())
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

/// The value as the chat template takes it, numbers that `serde_json` cannot hold as [`NUMBER`] says.
impl From<&Json> for Value {
    fn from(value: &Json) -> Self {
        match value {
            Json::Null | Json::Unusable(_) => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Integer(value) => Self::from(*value),
            Json::LongInteger(digits) => number(digits),
            Json::Float(value) => match Number::from_f64(*value) {
                Some(value) => Self::Number(value),
                None if value.is_nan() => number("NaN"),
                None if value.is_sign_positive() => number("Infinity"),
                None => number("-Infinity"),
            },
            Json::String(text) => Self::String(text.clone()),
            Json::Array(values) => values.iter().map(Self::from).collect(),
            Json::Object(fields) => Self::Object(map(fields)),
        }
    }
}

/// The fields of an object as the chat template takes them.
pub(crate) fn map(fields: &Object) -> Map<String, Value> {
    let fields = fields.iter();
    fields
        .map(|(name, value)| (name.clone(), Value::from(value)))
        .collect()
}

fn number(written: &str) -> Value {
    Value::Object(Map::from_iter([(NUMBER.to_owned(), Value::from(written))]))
}

#[cfg(test)]
mod tests;
