//! Provides the flags of settings, by clap: one for each, whose text becomes the TOML value that it stands for.

use std::{marker::PhantomData, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, builder::Resettable};
use toml::{Table, Value};

use super::{Key, Keys, Kind, resolve::insert};

/// Heading in the help of what decides where settings come from.
const GROUP: &str = "Settings";

/// What every command with settings takes beside them.
#[derive(Args, Clone, Debug, Default)]
pub struct FileFlags {
    /// TOML file with any of these settings; flags win over it
    #[arg(long, value_name = "FILE", help_heading = GROUP)]
    pub config: Option<PathBuf>,
    /// Print the resolved configuration as TOML and stop
    #[arg(long, help_heading = GROUP, hide_short_help = true)]
    pub print_config: bool,
}

/// The settings that were given as flags.
#[derive(Clone, Debug, Default)]
pub struct Flags<K> {
    /// By their keys.
    pub given: Table,
    keys: PhantomData<K>,
}

impl<K: Keys> FromArgMatches for Flags<K> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Table::new();
        for key in K::keys() {
            let Ok(Some(values)) = matches.try_get_many::<Value>(&key.path) else {
                continue;
            };
            let mut values: Vec<Value> = values.cloned().collect();
            let value = if key.kind.is_list() {
                Some(Value::Array(values))
            } else {
                values.pop()
            };
            if let Some(value) = value {
                insert(&mut given, &key.path, value);
            }
        }
        Ok(Self {
            given,
            keys: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        super::overlay(&mut self.given, Self::from_arg_matches(matches)?.given);
        Ok(())
    }
}

impl<K: Keys> Args for Flags<K> {
    fn augment_args(command: Command) -> Command {
        command.args(K::keys().into_iter().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Adds `--config`, `--print-config` and one flag a setting.
pub fn with_flags<K: Keys>(command: Command) -> Command {
    // What derives arguments calls the command what they are called.
    let about = command.get_about().cloned();
    let about = about.map_or(Resettable::Reset, Resettable::Value);
    Flags::<K>::augment_args(FileFlags::augment_args(command).about(about))
}

/// Makes `-h` one list of what is not hidden from it, with one line each, and `--help` all that there is, in groups.
pub fn with_brief_help(command: Command) -> Command {
    let help = Arg::new("help")
        .short('h')
        .long("help")
        .action(ArgAction::Help)
        .help_heading(GROUP);
    let count = command.get_arguments().count() + 1;
    let command = command.disable_help_flag(true).arg(help.help(format!(
        "-h prints these flags, --help all {count}, with defaults"
    )));
    let shown = command.get_arguments();
    let mut shown: Vec<&Arg> = shown.filter(|arg| !arg.is_hide_short_help_set()).collect();
    // What is done comes before where it is written down.
    shown.sort_by_key(|arg| arg.get_help_heading() == Some(GROUP));
    let rows: Vec<(String, String)> = shown.into_iter().map(row).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max();
    let width = width.unwrap_or_default();
    let lines = rows
        .iter()
        .map(|(name, help)| format!("  {name:width$}  {help}"));
    let brief = lines.collect::<Vec<_>>().join("\n");
    command
        .mut_args(|arg| arg.hide_short_help(true))
        .after_help(brief)
        .after_long_help("")
}

/// What an argument looks like, and what it is for.
fn row(arg: &Arg) -> (String, String) {
    let short = arg
        .get_short()
        .map_or_else(String::new, |short| format!("-{short}, "));
    let names = arg
        .get_value_names()
        .filter(|_| arg.get_action().takes_values());
    let value = names.and_then(<[_]>::first);
    let value = value.map_or_else(String::new, |name| format!("<{name}>"));
    let name = match arg.get_long() {
        Some(long) => format!("{short}--{long} {value}"),
        None => value,
    };
    let help = arg.get_help().map(ToString::to_string);
    (name.trim_end().to_owned(), help.unwrap_or_default())
}

fn flag(key: Key) -> Arg {
    let mut arg = Arg::new(key.path.clone())
        .long(key.flag())
        .help(key.line())
        .long_help(key.text())
        .help_heading(key.group)
        .hide_short_help(!key.is_essential);
    if let Some(alias) = key.alias {
        arg = arg.visible_alias(alias);
    }
    let (name, arg) = match key.kind {
        Kind::Integer => ("N", arg),
        Kind::Float => ("NUMBER", arg.allow_negative_numbers(true)),
        Kind::Boolean => ("on|off", arg.num_args(0..=1).default_missing_value("true")),
        Kind::Text => ("VALUE", arg),
        Kind::List => ("A,B", arg.action(ArgAction::Append).value_delimiter(',')),
        Kind::Numbers => ("1,2", arg.action(ArgAction::Append).value_delimiter(',')),
        Kind::Words => ("VALUE", arg.action(ArgAction::Append).num_args(1..)),
    };
    arg.value_name(key.value_name.unwrap_or(name))
        .value_parser(move |text: &str| read(&key, text))
}

/// A flag's text as the TOML value it stands for, of a list one of its values.
fn read(key: &Key, text: &str) -> Result<Value, String> {
    let value = parse(key.kind, text)?;
    let whole = if key.kind.is_list() {
        Value::Array(vec![value.clone()])
    } else {
        value.clone()
    };
    (key.check)(whole)?;
    Ok(value)
}

fn parse(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Integer => {
            let number = text.parse::<u64>().ok();
            let number = number.and_then(|number| i64::try_from(number).ok());
            let wrong = || format!("expected an integer from 0 to {}", i64::MAX);
            number.map(Value::Integer).ok_or_else(wrong)
        }
        Kind::Float | Kind::Numbers => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Value::Float(number)),
            _ => Err("expected a finite number such as 2e-4".to_owned()),
        },
        Kind::Boolean => match text {
            "true" | "on" => Ok(Value::Boolean(true)),
            "false" | "off" => Ok(Value::Boolean(false)),
            _ => Err("expected on or off".to_owned()),
        },
        Kind::Text | Kind::List | Kind::Words => Ok(Value::String(text.to_owned())),
    }
}
