//! Provides the command line: what a person may type, before anything is checked.

use std::path::{Path, PathBuf};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use distill_program::settings::{FileFlags, Flags, Key, Keys, Resolved, with_brief_help};
use toml::{Table, Value};

use crate::{
    Error, Result,
    cache::Cache,
    config::{Config, Part, with_our_name},
    inspect::Question,
    plan,
};

/// Runs a teacher model over a corpus and serves what it says about every token.
#[derive(Parser, Debug)]
#[command(name = "teacher-server", version, about, arg_required_else_help = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Args {
    /// Reads the process's arguments.
    ///
    /// # Errors
    /// clap's; a flag of another program is answered with ours.
    pub fn read() -> std::result::Result<Self, clap::Error> {
        let mut command = command();
        let matches = command.try_get_matches_from_mut(std::env::args_os());
        let read = matches.and_then(|matches| Self::from_arg_matches(&matches));
        read.map_err(|error| with_our_name(error.format(&mut command)))
    }
}

/// The whole command line; where settings are many, `-h` shows the few that everybody needs.
pub fn command() -> clap::Command {
    let command = Args::command();
    ["serve", "precompute"]
        .into_iter()
        .fold(command, |command, name| {
            command.mut_subcommand(name, with_brief_help)
        })
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the teacher once over the corpus and stream blocks of logits over gRPC.
    Serve(ServeArgs),
    /// Run the teacher once over the corpus into a cache; run it again after any interruption.
    Precompute(PrecomputeArgs),
    /// Say what is in a cache and, with the model, how well it stands for the teacher.
    Inspect(InspectArgs),
    /// Read every byte of a cache and name what is damaged; fails where something is.
    Verify(VerifyArgs),
    /// Put caches of one plan together, as `precompute --shard` makes them.
    Merge(MergeArgs),
}

/// Flags of `inspect`.
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// Directory of the cache.
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,
    /// The settings that count here.
    #[command(flatten)]
    pub settings: Flags<SampleKeys>,
    /// Sequences of the sample, spread evenly.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub sample: usize,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

impl InspectArgs {
    /// What is asked.
    ///
    /// # Errors
    /// None in practice: every flag has been read before.
    pub fn question(&self) -> Result<Question> {
        let config: Config = self
            .settings
            .given
            .clone()
            .try_into()
            .map_err(|e: toml::de::Error| Error::config("model", e.to_string()))?;
        Ok(Question {
            cache: self.cache.clone(),
            model: config.has_model().then_some(config.model),
            dtype: config.dtype,
            device: config.device,
            sample: self.sample,
        })
    }
}

/// Flags of `verify`.
#[derive(clap::Args, Debug)]
pub struct VerifyArgs {
    /// Directory of the cache.
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,
    /// Set damaged shards aside and compute again what was damaged in them; needs --model and --corpus.
    #[arg(long, requires = "model", requires = "corpus")]
    pub repair: bool,
    /// The settings that count here.
    #[command(flatten)]
    pub settings: Flags<RepairKeys>,
    /// Stop at the first line or row of the corpus that cannot be used, instead of skipping and naming it.
    #[arg(long)]
    pub strict: bool,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

impl VerifyArgs {
    /// The settings of a repair.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn repair(&self) -> Result<Config> {
        let mut given = self.settings.given.clone();
        let cache =
            Value::try_from(&self.cache).map_err(|e| Error::config("cache", e.to_string()))?;
        let own = [
            ("cache", cache),
            ("strict", self.strict.into()),
            ("json", self.json.into()),
        ];
        given.extend(own.map(|(key, value)| (key.to_owned(), value)));
        Ok(resolve("verify", None, given)?.config)
    }
}

/// Settings of a sample that is computed anew.
#[derive(Debug)]
pub struct SampleKeys;

impl Keys for SampleKeys {
    fn keys() -> Vec<Key> {
        let mut keys = keys_of(&["model", "dtype", "device"]);
        for key in keys.iter_mut().filter(|key| key.path == "model") {
            key.help += ": a sample is computed anew and compared with what is stored";
        }
        keys
    }
}

/// Settings of a repair; the others are as the cache was captured.
#[derive(Debug)]
pub struct RepairKeys;

impl Keys for RepairKeys {
    fn keys() -> Vec<Key> {
        keys_of(&["model", "corpus", "device", "threads"])
    }
}

/// Some of the settings, for a command with so few flags that its help needs no groups, and shows all.
fn keys_of(paths: &[&str]) -> Vec<Key> {
    let mut keys = Config::keys();
    keys.retain(|key| paths.contains(&key.path.as_str()));
    for key in &mut keys {
        key.group = None;
        key.is_essential = true;
    }
    keys
}

/// Flags of `merge`.
#[derive(clap::Args, Debug)]
pub struct MergeArgs {
    /// Cache to make or to complete.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Caches with some of the shards each.
    #[arg(value_name = "CACHE", required = true)]
    pub inputs: Vec<PathBuf>,
}

/// Flags of `precompute`.
#[derive(clap::Args, Debug, Default)]
pub struct PrecomputeArgs {
    /// Compute only every N-th shard, from the I-th on, counted from 0.
    ///
    /// For several machines, each with a cache of its own that `merge` puts together. `auto` takes both numbers from what started
    /// the process: a Slurm array or srun, an indexed Job of Kubernetes (with JOB_COMPLETIONS), SkyPilot, Open MPI or torchrun.
    #[arg(long, value_name = "I/N|auto", help_heading = "Cache")]
    pub shard: Option<Part>,
    /// Say what there is to compute and how much room it takes, and exit.
    ///
    /// How long it takes, only the work's own first batch shows.
    #[arg(long, help_heading = "Cache")]
    pub dry_run: bool,
    /// Settings, as for `serve`.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Flags of `serve`.
#[derive(clap::Args, Debug, Default)]
pub struct ServeArgs {
    /// The file of settings.
    #[command(flatten)]
    pub file: FileFlags,
    /// The settings.
    #[command(flatten)]
    pub settings: Flags<Config>,
}

impl ServeArgs {
    /// The checked settings of this command, and what was set to no effect.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn resolve(&self, command: &str) -> Result<Resolved<Config>> {
        resolve(
            command,
            self.file.config.as_deref(),
            self.settings.given.clone(),
        )
    }
}

fn resolve(command: &str, file: Option<&Path>, given: Table) -> Result<Resolved<Config>> {
    let captured = |path: &Path| match Cache::captured_settings(path)? {
        Some(text) => plan::captured_settings(&text).map(Some),
        None => Ok(None),
    };
    Config::validate(command, file, given, &captured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_a_command_with_settings_is_in_a_group_and_the_short_help_is_short() {
        let mut program = command();
        program.build();
        for name in ["serve", "precompute"] {
            let command = program.find_subcommand_mut(name).unwrap();
            for arg in command.get_arguments() {
                assert!(arg.get_help_heading().is_some(), "{}", arg.get_id());
            }
            let brief = command.render_help().to_string();
            assert!(brief.lines().count() <= 12, "{brief}");
            assert!(
                brief.lines().all(|line| line.chars().count() <= 100),
                "{brief}"
            );
            assert!(brief.contains("--help all"), "{brief}");
        }
    }

    #[test]
    fn a_command_with_few_flags_shows_all_of_them() {
        let mut program = command();
        program.build();
        let verify = program.find_subcommand_mut("verify").unwrap();
        let brief = verify.render_help().to_string();
        for flag in ["--repair", "--model", "--threads", "--json"] {
            assert!(brief.contains(flag), "{flag}: {brief}");
        }
    }
}
