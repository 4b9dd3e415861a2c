//! Provides the way from a command line to the settings of one command.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, FromArgMatches};
use distill_program::settings::{self, Flags, Key, Resolved, Scheme, Settings, number};
use toml::{Table, Value};

use super::{foreign::explain, nearest, preset::preset};
use crate::{Error, Result};

/// Resolves the settings of one command; `known` lists every command's keys.
///
/// # Errors
/// As [`settings::resolve`].
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
    let usage = |e: clap::Error| Error::Config(e.to_string());
    let flags = Flags::<C>::from_arg_matches(matches).map_err(usage)?.given;
    let has_presets = C::keys().iter().any(|key| key.path == "preset");
    let scheme = Scheme {
        known,
        explain: |path, known| {
            let near = || {
                let near = nearest(path, known.iter().copied()).unwrap_or_default();
                format!("the nearest setting is `{near}`")
            };
            explain(path).unwrap_or_else(near)
        },
        settle: settle_epsilon,
        foundation: &|given| match given.get("preset") {
            Some(name) if has_presets => preset(name),
            _ => Ok(Table::new()),
        },
    };
    // No need is one of a command.
    settings::resolve("", file, flags, &scheme)
}

/// Writes lambda as the epsilon that it stands for, so that of two sources the later one wins by either name.
fn settle_epsilon(source: &mut Table) -> Result<()> {
    let loss = source.get_mut("loss").and_then(Value::as_table_mut);
    let align = loss.and_then(|loss| loss.get_mut("align")?.as_table_mut());
    let Some(align) = align else {
        return Ok(());
    };
    let Some(lambda) = align.remove("lambda") else {
        return Ok(());
    };
    if let Some(epsilon) = align.get("epsilon") {
        return Err(Error::Config(format!(
            "loss.align.lambda: lambda is 1 / epsilon, but lambda {lambda} and epsilon {epsilon} are given together; give one"
        )));
    }
    let epsilon = number(&lambda).filter(|lambda| lambda.is_finite() && *lambda > 0.0);
    let Some(epsilon) = epsilon.map(f64::recip) else {
        return Err(Error::Config(format!(
            "loss.align.lambda: {lambda} is not a finite number above 0"
        )));
    };
    align.insert("epsilon".to_owned(), Value::Float(epsilon));
    Ok(())
}
