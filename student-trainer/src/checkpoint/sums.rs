//! Provides the checksums of `state.toml`: one a value, so that a damaged or edited one is refused by its name.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// Name of the table behind all others that holds them, by the dotted path of their value.
const TABLE: &str = "checksums";
/// Hexadecimal digits of one: a change passes by chance once in 2^64.
const DIGITS: usize = 16;

/// `text`, TOML, with the checksum of every value in it behind it.
pub(super) fn seal(text: &str) -> Result<String, String> {
    let table: Table = text.parse().map_err(said)?;
    let sums = BTreeMap::from([(TABLE, sums("", &table))]);
    let sums = toml::to_string(&sums).map_err(|e| e.to_string())?;
    Ok(format!("{text}\n{sums}"))
}

/// What a text holds beside its checksums.
#[derive(Debug, PartialEq)]
pub(super) struct Opened {
    pub table: Table,
    /// Whether there were checksums; all of them agree then.
    pub is_sealed: bool,
}

/// Reads what [`seal`] made, or what was never sealed.
///
/// # Errors
/// What is no TOML, or the first value that is not as it was written, is missing or was not there, by name.
pub(super) fn open(text: &str) -> Result<Opened, String> {
    let mut table: Table = text.parse().map_err(said)?;
    let Some(written) = table.remove(TABLE) else {
        return Ok(Opened {
            table,
            is_sealed: false,
        });
    };
    let written: BTreeMap<String, String> = written
        .try_into()
        .map_err(|e| format!("{TABLE}: {}", said(e)))?;
    let actual = sums("", &table);
    for (path, sum) in &written {
        match actual.get(path) {
            None => return Err(format!("{path} is missing")),
            Some(actual) if actual != sum => {
                return Err(format!("{path} is not as it was written"));
            }
            Some(_) => {}
        }
    }
    match actual.keys().find(|path| !written.contains_key(*path)) {
        Some(path) => Err(format!("{path} was not written by the run")),
        None => Ok(Opened {
            table,
            is_sealed: true,
        }),
    }
}

/// Where and what, without the lines around it.
fn said(error: toml::de::Error) -> String {
    error.message().to_owned()
}

/// Checksums of all values under `prefix`.
fn sums(prefix: &str, table: &Table) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (name, value) in table {
        let path = format!("{prefix}{name}");
        match value {
            Value::Table(inner) => all.append(&mut sums(&format!("{path}."), inner)),
            value => {
                let mut hasher = blake3::Hasher::new();
                feed(&mut hasher, value);
                let mut sum = hasher.finalize().to_hex().to_string();
                sum.truncate(DIGITS);
                all.insert(path, sum);
            }
        }
    }
    all
}

/// The value itself, however a release writes it: a type, a length where it may vary, and the bits.
fn feed(hasher: &mut blake3::Hasher, value: &Value) {
    let mut tagged = |tag: u8, bytes: &[u8]| {
        hasher.update(&[tag]);
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    match value {
        Value::String(text) => tagged(b's', text.as_bytes()),
        Value::Integer(number) => tagged(b'i', &number.to_le_bytes()),
        Value::Float(number) => tagged(b'f', &number.to_bits().to_le_bytes()),
        Value::Boolean(truth) => tagged(b'b', &[u8::from(*truth)]),
        Value::Datetime(moment) => tagged(b'd', moment.to_string().as_bytes()),
        Value::Array(items) => {
            tagged(b'a', &(items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| feed(hasher, item));
        }
        Value::Table(fields) => {
            tagged(b't', &(fields.len() as u64).to_le_bytes());
            for (name, field) in fields {
                hasher.update(&(name.len() as u64).to_le_bytes());
                hasher.update(name.as_bytes());
                feed(hasher, field);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_was_changed_removed_or_added_is_named() {
        let text = "step = 7\nshare = 0.5\nnames = [\"a\", \"b\"]\n[data]\nindex = 3\n";
        let sealed = seal(text).unwrap();
        let table: Table = text.parse().unwrap();
        for (text, is_sealed) in [(sealed.as_str(), true), (text, false)] {
            let table = table.clone();
            assert_eq!(open(text).unwrap(), Opened { table, is_sealed });
        }
        for (from, to, named) in [
            ("step = 7", "step = 8", "step is not"),
            // The same number, but of another type.
            ("step = 7", "step = 7.0", "step is not"),
            ("share = 0.5", "share = 0.25", "share is not"),
            ("\"a\", \"b\"", "\"ab\"", "names is not"),
            ("index = 3", "index = -3", "data.index is not"),
            ("index = 3", "", "data.index is missing"),
            (
                "index = 3",
                "index = 3\nmore = 1",
                "data.more was not written",
            ),
            ("step = 7", "step == 7", ""),
        ] {
            let changed = sealed.replacen(from, to, 1);
            assert_ne!(changed, sealed);
            let message = open(&changed).unwrap_err();
            assert!(message.contains(named), "{to}: {message}");
        }
    }
}
