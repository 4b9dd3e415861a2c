//! Provides the way from flags and a TOML file to a resolved configuration: defaults, then the file, then the flags.

use std::path::Path;

use toml::{Table, Value};

use super::{Error, Key, Settings, needs::is_same, table};
use crate::files;

/// Bytes of a file of settings.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// How a program reads its settings.
pub struct Scheme<'a, E> {
    /// Every setting that a file may hold; one file may serve several commands.
    pub known: &'a [Key],
    /// What to say of a name that is no setting, given the names of all that are.
    pub explain: fn(&str, &[&str]) -> String,
    /// Puts one source in order, before it is laid over another one.
    pub settle: fn(&mut Table) -> Result<(), E>,
    /// What lies between the defaults and what was given: presets, and defaults that follow from what was given.
    pub foundation: &'a dyn Fn(&Table) -> Result<Table, E>,
}

/// What came of flags and a file.
pub struct Resolved<C> {
    /// Defaults, overlaid by the file, overlaid by the flags.
    pub config: C,
    /// What was set and has no effect, each with what is missing.
    pub idle: Vec<String>,
}

/// Resolves the settings of one command. Keys of the file that belong to another command are left alone, so that one
/// file serves all of them.
///
/// # Errors
/// A file that cannot be read or parsed, a key that no command has (with the nearest one that exists), or a value of
/// the wrong type; what the scheme refuses.
pub fn resolve<C: Settings, E: From<Error>>(
    command: &str,
    file: Option<&Path>,
    flags: Table,
    scheme: &Scheme<'_, E>,
) -> Result<Resolved<C>, E> {
    let own = C::keys();
    let file = match file {
        Some(path) => read_file(path, &own, scheme)?,
        None => Table::new(),
    };
    let mut both = file.clone();
    overlay(&mut both, flags.clone());
    let mut values = table(&C::default())?;
    overlay(&mut values, (scheme.foundation)(&both)?);
    let is_given = |key: &&Key| {
        let path = key.path.as_str();
        // A file that says what holds anyway was most likely printed.
        let in_file = lookup(&file, path)
            .is_some_and(|new| lookup(&values, path).is_none_or(|old| !is_same(old, new)));
        in_file || lookup(&flags, path).is_some()
    };
    let given: Vec<&Key> = own.iter().filter(is_given).collect();
    let mut idle = misplaced(&file, &own);
    for mut source in [file, flags] {
        (scheme.settle)(&mut source)?;
        overlay(&mut values, source);
    }
    idle.extend(given.iter().filter_map(|key| key.idle(command, &values)));
    keep_only(&mut values, "", &own);
    let config = values
        .try_into()
        .map_err(|e: toml::de::Error| Error::key("configuration", e.to_string().trim_end()))?;
    Ok(Resolved { config, idle })
}

/// Keys of the file that are another command's, where this one has a setting of that name in a section, which is not set.
fn misplaced(file: &Table, own: &[Key]) -> Vec<String> {
    let is_own = |name: &str| own.iter().any(|key| key.path == name);
    let others = file.iter().filter(|(_, value)| !value.is_table());
    let misplaced = others.filter_map(|(name, _)| {
        let of_section = |key: &&Key| {
            let section = key.path.strip_suffix(name.as_str());
            section.is_some_and(|section| section.ends_with('.'))
        };
        let key = own.iter().find(of_section)?;
        let meant = !is_own(name) && lookup(file, &key.path).is_none();
        meant.then(|| {
            format!(
                "{name} has no effect here: outside a section it is another command's; this one's is {}",
                key.path
            )
        })
    });
    misplaced.collect()
}

fn read_file<E>(path: &Path, own: &[Key], scheme: &Scheme<'_, E>) -> Result<Table, Error> {
    let text = files::read_text(path, FILE_BYTES_MAX)?;
    let table: Table = text
        .parse()
        .map_err(|e: toml::de::Error| Error::file(path, e.to_string()))?;
    let check = |key: &Key| match lookup(&table, &key.path) {
        Some(value) => {
            (key.check)(value.clone()).map_err(|reason| format!("{}: {reason}", key.path))
        }
        None => Ok(()),
    };
    refuse_unknown(&table, "", scheme)
        .and_then(|()| own.iter().try_for_each(check))
        .map_err(|reason| Error::file(path, reason))?;
    Ok(table)
}

/// Fails on the first key that is neither a setting nor a table with settings in it.
fn refuse_unknown<E>(table: &Table, prefix: &str, scheme: &Scheme<'_, E>) -> Result<(), String> {
    let known = scheme.known;
    for (name, value) in table {
        let path = format!("{prefix}{name}");
        let section = format!("{path}.");
        match value {
            Value::Table(inner) if known.iter().any(|key| key.path.starts_with(&section)) => {
                refuse_unknown(inner, &section, scheme)?;
            }
            _ if known.iter().any(|key| key.path == path) => {}
            // Of a section that nobody has, its settings say more than its name.
            Value::Table(inner) if !inner.is_empty() => {
                refuse_unknown(inner, &section, scheme)?;
            }
            _ => {
                let paths: Vec<&str> = known.iter().map(|key| key.path.as_str()).collect();
                let hint = (scheme.explain)(&path, &paths);
                return Err(format!("there is no setting `{path}`; {hint}"));
            }
        }
    }
    Ok(())
}

/// The value at a dotted path.
pub fn lookup<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        None => table.get(path),
        Some((section, rest)) => lookup(table.get(section)?.as_table()?, rest),
    }
}

/// Puts a value at a dotted path, and makes the tables on the way.
pub fn insert(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table
                .entry(section.to_owned())
                .or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// Puts what `over` holds in the place of what `under` holds.
pub fn overlay(under: &mut Table, over: Table) {
    for (name, value) in over {
        match (under.get_mut(&name), value) {
            (Some(Value::Table(under)), Value::Table(over)) => overlay(under, over),
            (_, value) => {
                under.insert(name, value);
            }
        }
    }
}

/// Drops what belongs to other commands, so that a strict section can refuse unknown fields of its own. A setting whose value
/// is a table keeps all of it.
fn keep_only(table: &mut Table, prefix: &str, keys: &[Key]) {
    table.retain(|name, value| {
        let path = format!("{prefix}{name}");
        if keys.iter().any(|key| key.path == path) {
            return true;
        }
        let section = format!("{path}.");
        if let Value::Table(inner) = value {
            keep_only(inner, &section, keys);
        }
        keys.iter().any(|key| key.path.starts_with(&section))
    });
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
