/*! The push of a result to the hub: what a run made, or what `export` wrote, with a model card, as one commit.

```text
 RUN/adapter | RUN/model ──> files, the base by its name on the hub ──┐
 RUN ──> report ──> card ─────────────────────────────────────────────┼──> shown, or with --yes ──> distill_hub::push
 DIR of export ──> files, its own card or a short one ────────────────┘
```
*/

mod card;
mod contents;

use std::{fmt::Write, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use distill_hub::{Environment, Push, Reference};
use distill_program::units::Bytes;

use crate::{Error, Result, shutdown::Shutdown};
use contents::Contents;

/// What the command is told.
#[derive(Clone, Debug, Default)]
pub struct PushArgs {
    /// A run directory, or what `export` wrote.
    pub from: PathBuf,
    /// The repository.
    pub to: String,
    /// The base's name on the hub; none where it is known.
    pub base: Option<String>,
    /// Whether nobody else may see a new repository.
    pub private: bool,
    /// Whether it is done, and not shown alone.
    pub yes: bool,
}

/// The command line.
pub fn command() -> Command {
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    let name = |name: &'static str| Arg::new(name).long(name).value_name("ORG/NAME");
    Command::new("push")
        .about("Push what a run made, or what export wrote, to the hub with a model card")
        .arg(
            Arg::new("from")
                .value_name("RUN_DIR")
                .required(true)
                .value_parser(clap::value_parser!(PathBuf))
                .help("Run directory of train or pretrain, or a directory that export wrote"),
        )
        .arg(
            name("to")
                .required(true)
                .help("Repository on the hub; one that is not there is made"),
        )
        .arg(name("base").help(
            "Name of the base on the hub; unset: the one that the run was told, where that was no directory",
        ))
        .arg(switch("private").help("Let nobody else see the repository"))
        .arg(switch("yes").help("Push; without it, what would be pushed is shown"))
}

impl PushArgs {
    /// As typed.
    pub fn of(matches: &ArgMatches) -> Self {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        Self {
            from: matches
                .get_one::<PathBuf>("from")
                .cloned()
                .unwrap_or_default(),
            to: text("to").unwrap_or_default(),
            base: text("base"),
            private: matches.get_flag("private"),
            yes: matches.get_flag("yes"),
        }
    }
}

/// Pushes, or says what would be pushed: what is to be printed.
///
/// # Errors
/// What is named is no result; a base without a name on the hub; what the hub says.
pub fn run(args: &PushArgs, shutdown: &Shutdown) -> Result<String> {
    let to = reference("to", &args.to)?;
    if to.revision.is_some() {
        return Err(Error::Config(format!(
            "to: {}: what is pushed goes to the branch main; name the repository alone",
            args.to
        )));
    }
    let base = args.base.as_deref();
    let base = base.map(|name| reference("base", name)).transpose()?;
    let contents = Contents::find(&args.from, &to, base.as_ref())?;
    if !args.yes {
        return show(&contents, &to, args.private);
    }
    let Contents {
        files, left_out, ..
    } = contents;
    for name in left_out {
        tracing::warn!("not pushed: {name}");
    }
    let names: Vec<&str> = files.iter().map(distill_hub::Upload::name).collect();
    tracing::info!("pushing to {}: {}", to.repo, names.join(", "));
    let pushed = distill_hub::push(&Push {
        to: &to,
        private: args.private,
        files: &files,
        summary: "Pushed by student-trainer",
        stopped: &|| shutdown.is_requested(),
    })?;
    if pushed.commit.is_none() {
        tracing::info!("{} has all of it already; nothing was pushed", to.repo);
    }
    if !pushed.others.is_empty() {
        tracing::warn!(
            "{} holds other weights as well, which stay, and may be loaded instead: {}",
            to.repo,
            pushed.others.join(", ")
        );
    }
    Ok(format!("{}\n", pushed.url))
}

/// A repository's name, as `setting` has it.
fn reference(setting: &str, name: &str) -> Result<Reference> {
    let found = Reference::parse(name).filter(|reference| reference.file.is_none());
    found.ok_or_else(|| {
        Error::Config(format!(
            "{setting}: `{name}` is no name of a repository on the hub; one reads org/name"
        ))
    })
}

/// The card, the files and where they would go.
fn show(contents: &Contents, to: &Reference, private: bool) -> Result<String> {
    let endpoint = Environment::from_env()?.endpoint;
    let visible = if private {
        "private"
    } else {
        "public where it is new"
    };
    let mut text = format!("{}\n", contents.card.trim_end());
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "\n{endpoint}/{} would get ({visible}):", to.repo);
    let width = contents.files.iter().map(|file| file.name().len()).max();
    let width = width.unwrap_or_default();
    for file in &contents.files {
        let _ = writeln!(text, "  {:width$}  {}", file.name(), Bytes(file.bytes()?));
    }
    for name in &contents.left_out {
        let _ = writeln!(text, "not: {name}");
    }
    text += "The card above is its README.md. Nothing was pushed; add --yes to push.\n";
    Ok(text)
}
