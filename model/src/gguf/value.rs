//! Provides the values of a GGUF file's metadata, and their reading as the type that is expected.

use std::{collections::HashMap, path::Path};

use crate::{Error, Result};

/// A value, of whatever width it was stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
}

impl Value {
    /// A number that is not negative.
    pub fn unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    pub fn float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    pub fn bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn list(&self) -> Option<&[Value]> {
        match self {
            Self::List(values) => Some(values),
            _ => None,
        }
    }

    /// Memory that it takes: itself, and what an allocator gives for its text or list.
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Text(text) => allocated(text.capacity()),
                Self::List(values) => {
                    let spare = values.capacity() - values.len();
                    let values: usize = values.iter().map(Self::bytes).sum();
                    allocated(values + spare * size_of::<Self>())
                }
                _ => 0,
            }
    }

    /// What it is, without its value: a vocabulary would fill a page.
    fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a truth value",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
        }
    }
}

/// A block of at least `bytes` with its header, in steps of an allocator's grain.
fn allocated(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        bytes => (bytes + size_of::<usize>()).next_multiple_of(2 * size_of::<usize>()),
    }
}

/// The metadata of the file at `path`.
#[derive(Clone, Copy)]
pub(super) struct Metadata<'a> {
    pub values: &'a HashMap<String, Value>,
    pub path: &'a Path,
}

impl<'a> Metadata<'a> {
    /// The value of `key`, if it is there.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key)
    }

    pub fn unsigned(&self, key: &str) -> Result<u64> {
        self.expect(key, "an integer that is not negative", Value::unsigned)
    }

    pub fn float(&self, key: &str) -> Result<f64> {
        self.expect(key, "a float", Value::float)
    }

    pub fn text(&self, key: &str) -> Result<&'a str> {
        self.expect(key, "a text", Value::text)
    }

    pub fn list(&self, key: &str) -> Result<&'a [Value]> {
        self.expect(key, "a list", Value::list)
    }

    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        let texts = self.list(key)?.iter();
        let texts = texts.map(|value| value.text().map(str::to_owned));
        let texts: Option<Vec<String>> = texts.collect();
        texts.ok_or_else(|| self.fault(key, "is no list of texts"))
    }

    /// An error about `key`.
    pub fn fault(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::malformed(self.path, key, problem)
    }

    fn expect<T: 'a>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T> {
        let Some(value) = self.get(key) else {
            return Err(self.fault(key, "is not in the file's metadata"));
        };
        read(value).ok_or_else(|| {
            let problem = format!("is {}, not {what}", value.kind());
            self.fault(key, problem)
        })
    }
}
