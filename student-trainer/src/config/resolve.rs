//! Provides the way from flags and a TOML file to a resolved configuration: defaults, then the file, then the flags.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::{Table, Value};

use super::{
    foreign::explain,
    nearest,
    needs::{self, is_same, lookup},
    preset::preset,
    settings::{Key, Kind, Settings},
};
use crate::{Error, Result, files};

/// Bytes of a file of settings.
pub(crate) const SETTINGS_BYTES_MAX: u64 = 1 << 20;

/// What the command line asked for beside settings.
pub struct Resolved<C> {
    /// Defaults, overlaid by the file, overlaid by the flags.
    pub config: C,
    /// `--print-config` was given: print and stop.
    pub print_only: bool,
    /// What was set and has no effect, each with what is missing.
    pub idle: Vec<String>,
}

/// Adds `--config`, `--print-config` and one flag a setting.
pub fn with_flags<C: Settings>(command: Command) -> Command {
    let command = command
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("TOML file with any of the settings below; flags win over it"),
        )
        .arg(
            Arg::new("print-config")
                .long("print-config")
                .action(ArgAction::SetTrue)
                .help("Print the resolved configuration as TOML and stop"),
        );
    C::keys()
        .iter()
        .fold(command, |command, key| command.arg(flag(key)))
}

fn flag(key: &Key) -> Arg {
    let kind = key.kind;
    let arg = Arg::new(key.path.clone())
        .long(key.flag())
        .help(key.help.clone())
        .value_parser(move |text: &str| parse(text, kind));
    match kind {
        Kind::Integer => arg.value_name("N"),
        Kind::Float => arg.value_name("NUMBER").allow_negative_numbers(true),
        Kind::Boolean => arg
            .value_name("on|off")
            .num_args(0..=1)
            .default_missing_value("true"),
        Kind::Text => arg.value_name("VALUE"),
        Kind::List => arg
            .value_name("A,B")
            .action(ArgAction::Append)
            .value_delimiter(','),
    }
}

/// A flag's text as the TOML value it stands for.
fn parse(text: &str, kind: Kind) -> std::result::Result<Value, String> {
    match kind {
        Kind::Integer => {
            let parsed = text.parse::<u64>().ok().and_then(|n| i64::try_from(n).ok());
            parsed
                .map(Value::Integer)
                .ok_or_else(|| "expected an integer of at least 0".to_owned())
        }
        Kind::Float => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Value::Float(number)),
            _ => Err("expected a finite number such as 2e-4".to_owned()),
        },
        Kind::Boolean => match text {
            "true" | "on" => Ok(Value::Boolean(true)),
            "false" | "off" => Ok(Value::Boolean(false)),
            _ => Err("expected on or off".to_owned()),
        },
        Kind::Text | Kind::List => Ok(Value::String(text.to_owned())),
    }
}

/// Resolves the settings of one command. Keys of the file that belong to another command are left alone, so that one
/// file serves all of them; `known` lists every command's keys.
///
/// # Errors
/// A file that cannot be read or parsed, a key that no command has (with the nearest one that exists), or a value of
/// the wrong type.
pub fn resolve<C: Settings>(matches: &ArgMatches, known: &[Key]) -> Result<Resolved<C>> {
    let file = matches.get_one::<PathBuf>("config");
    resolve_over(file.map(PathBuf::as_path), matches, known)
}

/// As [`resolve`], over a file that the flags do not name.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_over<C: Settings>(
    file: Option<&Path>,
    matches: &ArgMatches,
    known: &[Key],
) -> Result<Resolved<C>> {
    let mut values = Table::try_from(C::default())
        .map_err(|e| Error::Config(format!("the defaults cannot be written as TOML: {e}")))?;
    let own = C::keys();
    let file = match file {
        Some(path) => read_file(path, known)?,
        None => Table::new(),
    };
    let flags = given_flags(matches, &own);
    let has_presets = own.iter().any(|key| key.path == "preset");
    if let Some(name) = flags.get("preset").or_else(|| file.get("preset"))
        && has_presets
    {
        overlay(&mut values, preset(name)?);
    }
    let given = |key: &&Key| {
        let path = key.path.as_str();
        // A file that says what holds anyway was most likely printed.
        let in_file = lookup(&file, path)
            .is_some_and(|new| lookup(&values, path).is_none_or(|old| !is_same(old, new)));
        in_file || lookup(&flags, path).is_some()
    };
    let given: Vec<&Key> = own.iter().filter(given).collect();
    let mut idle = misplaced(&file, &own);
    for mut source in [file, flags] {
        settle_epsilon(&mut source)?;
        overlay(&mut values, source);
    }
    idle.extend(given.iter().filter_map(|key| needs::idle(key, &values)));
    keep_only(&mut values, "", &own);
    let config = values.try_into().map_err(|e: toml::de::Error| {
        Error::Config(format!("configuration: {}", e.to_string().trim_end()))
    })?;
    Ok(Resolved {
        config,
        print_only: matches.get_flag("print-config"),
        idle,
    })
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

fn read_file(path: &Path, known: &[Key]) -> Result<Table> {
    let text = files::read_text(path, SETTINGS_BYTES_MAX)?;
    let table: Table = text
        .parse()
        .map_err(|e: toml::de::Error| Error::Config(format!("{}: {e}", path.display())))?;
    refuse_unknown(&table, "", known, path)?;
    Ok(table)
}

/// Fails on the first key that is neither a setting nor a table with settings in it.
fn refuse_unknown(table: &Table, prefix: &str, known: &[Key], file: &Path) -> Result<()> {
    for (name, value) in table {
        let path = format!("{prefix}{name}");
        let section = format!("{path}.");
        match value {
            Value::Table(inner) if known.iter().any(|key| key.path.starts_with(&section)) => {
                refuse_unknown(inner, &section, known, file)?;
            }
            _ if known.iter().any(|key| key.path == path) => {}
            _ => {
                let candidates = known.iter().map(|key| key.path.as_str());
                let near = || {
                    let near = nearest(&path, candidates).unwrap_or_default();
                    format!("the nearest setting is `{near}`")
                };
                let hint = explain(name).unwrap_or_else(near);
                return Err(Error::Config(format!(
                    "{}: there is no setting `{path}`; {hint}",
                    file.display()
                )));
            }
        }
    }
    Ok(())
}

fn given_flags(matches: &ArgMatches, keys: &[Key]) -> Table {
    let mut table = Table::new();
    for key in keys {
        let Ok(Some(given)) = matches.try_get_many::<Value>(&key.path) else {
            continue;
        };
        let given: Vec<Value> = given.cloned().collect();
        let value = match (key.kind, given.as_slice()) {
            (Kind::List, _) => Value::Array(given),
            (_, [.., last]) => last.clone(),
            _ => continue,
        };
        insert(&mut table, &key.path, value);
    }
    table
}

fn insert(table: &mut Table, path: &str, value: Value) {
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

fn overlay(under: &mut Table, over: Table) {
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

/// Writes lambda as the epsilon that it stands for, so that of two sources the later one wins by either name.
fn settle_epsilon(source: &mut Table) -> Result<()> {
    let loss = source.get_mut("loss").and_then(Value::as_table_mut);
    let transport = loss.and_then(|loss| loss.get_mut("ot")?.as_table_mut());
    let Some(transport) = transport else {
        return Ok(());
    };
    let Some(lambda) = transport.remove("lambda") else {
        return Ok(());
    };
    if let Some(epsilon) = transport.get("epsilon") {
        return Err(Error::Config(format!(
            "loss.ot.lambda: lambda is 1 / epsilon, but lambda {lambda} and epsilon {epsilon} are given together; give one"
        )));
    }
    let epsilon = needs::number(&lambda).filter(|lambda| lambda.is_finite() && *lambda > 0.0);
    let Some(epsilon) = epsilon.map(f64::recip) else {
        return Err(Error::Config(format!(
            "loss.ot.lambda: {lambda} is not a finite number above 0"
        )));
    };
    transport.insert("epsilon".to_owned(), Value::Float(epsilon));
    Ok(())
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
