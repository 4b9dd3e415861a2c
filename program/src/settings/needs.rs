/*! Provides what a setting needs beside itself to have an effect, and the warning about one that has none.

A need stands with its setting, where that is declared. What was set without it is no error: a command line is often the one
before with a weight put to 0.
*/

use toml::{Table, Value};

use super::{Key, key::flag_of, lookup};

/// What the value of a setting must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// A number above 0.
    Above0,
    /// True.
    On,
    /// There, and not empty.
    Set,
    /// Not there.
    Unset,
    /// The first of these words, or another name of it.
    One(&'static [&'static str]),
    /// Another word than this.
    Not(&'static str),
    /// A text that begins like this.
    Begins(&'static str),
    /// No address of a server.
    NoAddress,
    /// Anything: what counts is that the command is this one.
    Command(&'static str),
}

/// One of these must hold: the dotted path of a setting, and what it must be.
pub type Need = &'static [(&'static str, Is)];

/// Beginnings of what a trainer connects to.
const ADDRESSES: [&str; 3] = ["http://", "https://", "unix:"];

impl Is {
    fn holds(self, value: Option<&Value>, command: &str) -> bool {
        let text = value.and_then(Value::as_str);
        match self {
            Self::Above0 => value.and_then(number).is_some_and(|number| number > 0.0),
            Self::On => value.and_then(Value::as_bool) == Some(true),
            Self::Set => value.is_some_and(|value| {
                value.as_array().is_none_or(|values| !values.is_empty()) && text != Some("")
            }),
            Self::Unset => value.is_none(),
            Self::One(words) => text.is_some_and(|text| words.contains(&text)),
            Self::Not(word) => text != Some(word),
            Self::Begins(beginning) => text.is_some_and(|text| text.starts_with(beginning)),
            Self::NoAddress => {
                text.is_some_and(|text| !ADDRESSES.iter().any(|begin| text.starts_with(begin)))
            }
            Self::Command(name) => command == name,
        }
    }

    /// What to give, in words.
    fn wish(self, flag: &str) -> String {
        match self {
            Self::Above0 => format!("--{flag} above 0"),
            Self::On => format!("--{flag} on"),
            Self::Set => format!("--{flag}"),
            Self::Unset => format!("no --{flag}"),
            Self::One(words) => format!("--{flag} {}", words.first().unwrap_or(&"")),
            Self::Not(word) => format!("another --{flag} than {word}"),
            Self::Begins(beginning) => format!("--{flag} {beginning}..."),
            Self::NoAddress => format!("--{flag} with a model"),
            Self::Command(name) => format!("the command {name}"),
        }
    }
}

impl Key {
    /// Why it has no effect in this command with these settings; `None` where it has one.
    pub fn idle(&self, command: &str, settings: &Table) -> Option<String> {
        let is_met = |need: &Need| {
            need.iter()
                .any(|(path, is)| is.holds(lookup(settings, path), command))
        };
        let wish = |need: &Need| {
            let wishes = need.iter().map(|(path, is)| is.wish(&flag_of(path)));
            wishes.collect::<Vec<_>>().join(" or ")
        };
        let lacking = self.needs.iter().filter(|need| !is_met(need));
        let lacking: Vec<String> = lacking.map(wish).collect();
        (!lacking.is_empty()).then(|| {
            format!(
                "{} has no effect: it needs {}",
                self.path,
                lacking.join(", and ")
            )
        })
    }
}

/// Whether two values are the same one: 1 is 1.0.
pub(super) fn is_same(a: &Value, b: &Value) -> bool {
    a == b || matches!((number(a), number(b)), (Some(a), Some(b)) if a == b)
}

/// A number, written as an integer or not.
pub fn number(value: &Value) -> Option<f64> {
    value
        .as_float()
        .or_else(|| value.as_integer().map(|number| number as f64))
}
