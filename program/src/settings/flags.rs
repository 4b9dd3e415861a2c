//! Provides the flags of settings, by clap: one for each, whose text becomes the TOML value that it stands for.

use std::{marker::PhantomData, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use toml::{Table, Value};

use super::{Key, Keys, Kind, resolve::insert};

/// What every command with settings takes beside them.
#[derive(Args, Clone, Debug, Default)]
pub struct FileFlags {
    /// TOML file with any of the settings below; flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the resolved configuration as TOML and stop
    #[arg(long)]
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
    Flags::<K>::augment_args(FileFlags::augment_args(command))
}

fn flag(key: Key) -> Arg {
    let default = if key.default.is_empty() {
        String::new()
    } else {
        format!(" [default: {}]", key.default)
    };
    let help = format!("{}{default}", key.help);
    let mut arg = Arg::new(key.path.clone()).long(key.flag());
    if !key.details.is_empty() {
        arg = arg.long_help(format!("{help}\n\n{}", key.details));
    }
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
    arg.help(help)
        .value_name(key.value_name.unwrap_or(name))
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
