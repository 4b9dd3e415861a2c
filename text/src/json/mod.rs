//! Provides JSON as Python's `json` reads it, which is what corpora are written for.
//!
//! `serde_json` differs where it matters: it refuses `NaN` and `Infinity`, rounds integers above 64 bits, and refuses a
//! whole line for a lone surrogate in a field that nobody reads.

mod parse;

use indexmap::IndexMap;
use serde::{Serialize, Serializer, ser::Error as _};

pub(crate) use parse::parse;

/// Fields in the order of the text; of equal names the last value counts, at the place of the first.
pub(crate) type Object = IndexMap<String, Json>;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Integer(i128),
    /// Infinities and NaN included.
    Float(f64),
    String(String),
    Array(Vec<Json>),
    Object(Object),
    /// What Python can hold and a program of UTF-8 texts and 128-bit integers cannot, and why. It may stand where nobody reads it.
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
            Self::Integer(_) | Self::Float(_) => "a number",
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

/// An object that is not in a [`Json`].
pub(crate) struct Fields<'a>(pub &'a Object);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => match i64::try_from(*value) {
                Ok(value) => serializer.serialize_i64(value),
                Err(_) => serializer.serialize_i128(*value),
            },
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(values) => serializer.collect_seq(values),
            Self::Object(fields) => Fields(fields).serialize(serializer),
            Self::Unusable(reason) => Err(S::Error::custom(reason)),
        }
    }
}

#[cfg(test)]
mod tests;
