//! Provides one setting as it is declared: its key, what its flag says about itself, and what its value may be.

use std::{
    ops::{Bound, RangeBounds},
    path::PathBuf,
};

use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use super::{Error, Need, lookup, words};

/// What a setting's value looks like on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An integer of at least zero.
    Integer,
    /// A number.
    Float,
    /// `true`, `false`, `on` or `off`; the flag alone means `true`.
    Boolean,
    /// Any text.
    Text,
    /// Comma-separated texts; the flag may be repeated.
    List,
    /// Comma-separated numbers; the flag may be repeated.
    Numbers,
    /// Several texts after one flag; the flag may be repeated.
    Words,
}

impl Kind {
    /// Whether its value is an array.
    pub(super) fn is_list(self) -> bool {
        matches!(self, Self::List | Self::Numbers | Self::Words)
    }
}

/// A type that says what its value looks like.
pub trait Setting {
    /// What its value looks like on the command line.
    const KIND: Kind;
}

macro_rules! kinds {
    ($($kind:ident: $($ty:ty),+;)+) => {
        $($(impl Setting for $ty {
            const KIND: Kind = Kind::$kind;
        })+)+
    };
}

kinds! {
    Integer: usize, u64, u32;
    Float: f64;
    Boolean: bool;
    Text: String, PathBuf;
    List: Vec<String>, Vec<PathBuf>;
    Numbers: Vec<f32>;
}

impl<T: Setting> Setting for Option<T> {
    const KIND: Kind = T::KIND;
}

/// One setting: its key in TOML, and what its flag says about itself.
#[derive(Clone, Debug)]
pub struct Key {
    /// Dotted path in TOML, e.g. `loss.kl_weight`; the flag is the last part with dashes, in some sections with their name before it.
    pub path: String,
    /// One line about it.
    pub help: String,
    /// What `--help` says beside it; most often nothing.
    pub details: String,
    /// What a value looks like.
    pub kind: Kind,
    /// What must hold for the setting to have an effect, all of it.
    pub needs: Vec<Need>,
    /// Whether another value makes what goes on another one: another capture (`changes_bytes: yes`), or another run
    /// (`may_resume: no`).
    pub is_bound: bool,
    /// What it is where nobody sets it, for people; empty where there is nothing to say.
    pub default: String,
    /// What stands for a value in the help, where that is not its kind's.
    pub value_name: Option<&'static str>,
    /// Another name of the flag.
    pub alias: Option<&'static str>,
    /// The heading in the help that it stands under; none where settings are few.
    pub group: Option<&'static str>,
    /// Whether it is one of the few that everybody needs, which `-h` shows.
    pub is_essential: bool,
    /// The words that it may be; empty where it is not one of a few.
    pub words: &'static [&'static str],
    /// Limits of the number, or of how many there are.
    pub limits: Option<(u64, u64)>,
    /// Refuses a value that is none of this setting's type.
    pub check: fn(Value) -> Result<(), String>,
}

impl Key {
    /// A key that has an effect by itself, and that nothing is bound to. `doc` is its help, in paragraphs.
    pub fn new(path: impl Into<String>, doc: &str, kind: Kind) -> Self {
        let paragraph = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut paragraphs = doc.split("\n\n").map(paragraph);
        let help = paragraphs.next().unwrap_or_default();
        Self {
            path: path.into(),
            help: help.trim_end_matches('.').to_owned(),
            details: paragraphs.collect::<Vec<_>>().join("\n\n"),
            kind,
            needs: Vec::new(),
            is_bound: false,
            default: String::new(),
            value_name: None,
            alias: None,
            group: None,
            is_essential: false,
            words: &[],
            limits: None,
            check: |_| Ok(()),
        }
    }

    /// This key, whose value is read as a `T`.
    pub fn of<T: DeserializeOwned>(self) -> Self {
        Self {
            check: check::<T>,
            words: words::<T>(),
            ..self
        }
    }

    /// The flag without its dashes: `loss.kl_weight` gives `kl-weight`.
    pub fn flag(&self) -> String {
        flag_of(&self.path)
    }

    /// The line about it, with the default.
    pub fn line(&self) -> String {
        if self.default.is_empty() {
            self.help.clone()
        } else {
            format!("{} [default: {}]", self.help, self.default)
        }
    }

    /// All that the help says of it: the line, what the value may be, and the details.
    pub fn text(&self) -> String {
        let mut text = self.line();
        if !self.words.is_empty() {
            text += &format!(" [possible values: {}]", self.words.join(", "));
        }
        let what = if self.kind.is_list() { " values" } else { "" };
        // TOML has no larger integer.
        let open = i64::MAX.unsigned_abs();
        match self.limits {
            Some((min, max)) if max < open => text += &format!(" [{min} to {max}{what}]"),
            Some((min, _)) if min > 0 => text += &format!(" [at least {min}{what}]"),
            _ => {}
        }
        if !self.details.is_empty() {
            text += &format!("\n\n{}", self.details);
        }
        text
    }

    pub(super) fn check_limits(&self, value: &Value) -> Result<(), Error> {
        let number = match value {
            Value::Integer(number) => u64::try_from(*number).unwrap_or_default(),
            Value::Array(values) => values.len() as u64,
            _ => return Ok(()),
        };
        let reason = match self.limits {
            Some((min, u64::MAX)) if number < min => format!("must be at least {min}"),
            Some((min, max)) if !(min..=max).contains(&number) => {
                let what = if self.kind.is_list() { " values" } else { "" };
                format!("{number} is outside {min} to {max}{what}")
            }
            _ => return Ok(()),
        };
        Err(Error::key(&self.path, reason))
    }
}

/// Refuses a value that cannot be read as `T`.
fn check<T: DeserializeOwned>(value: Value) -> Result<(), String> {
    let read = value.try_into::<T>();
    read.map(drop).map_err(|error| error.message().to_owned())
}

/// A range with both its ends.
pub fn limits<T: Copy + TryInto<u64>>(range: impl RangeBounds<T>) -> (u64, u64) {
    let number = |bound: Bound<&T>, open: u64| match bound {
        Bound::Included(&number) => number.try_into().unwrap_or(open),
        Bound::Excluded(_) | Bound::Unbounded => open,
    };
    (
        number(range.start_bound(), 0),
        number(range.end_bound(), u64::MAX),
    )
}

/// The keys of a nested table.
pub fn section(name: &str, keys: Vec<Key>, is_bound: bool) -> impl Iterator<Item = Key> {
    keys.into_iter().map(move |key| Key {
        path: format!("{name}.{}", key.path),
        is_bound,
        ..key
    })
}

/// The keys with their groups: one that names none belongs to that of the key before it.
pub fn grouped(mut keys: Vec<Key>) -> Vec<Key> {
    let mut group = None;
    for key in &mut keys {
        group = key.group.or(group);
        key.group = group;
    }
    keys
}

/// The keys with what the help says of their defaults, where the declaration says nothing else.
pub fn with_defaults(mut keys: Vec<Key>, defaults: &impl Serialize) -> Vec<Key> {
    let defaults = Table::try_from(defaults).unwrap_or_default();
    for key in keys.iter_mut().filter(|key| key.default.is_empty()) {
        key.default = lookup(&defaults, &key.path).map_or_else(String::new, show);
    }
    keys
}

/// A value as a flag takes it; nothing for what is empty.
pub fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(number) if number.fract() == 0.0 => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Boolean(is_on) => if *is_on { "on" } else { "off" }.to_owned(),
        Value::Table(_) => String::new(),
        Value::Array(values) => values.iter().map(show).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Sections whose settings have words too common to stand alone: their flags begin with the section's name.
const NAMED_SECTIONS: [&str; 1] = ["align"];

/// The flag of a dotted path, without its dashes.
pub(crate) fn flag_of(path: &str) -> String {
    let mut parts = path.rsplit('.');
    let leaf = parts.next().unwrap_or(path).replace('_', "-");
    match parts.next() {
        Some(section) if NAMED_SECTIONS.contains(&section) => format!("{section}-{leaf}"),
        _ => leaf,
    }
}
