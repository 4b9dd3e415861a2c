//! Provides the command line: subcommands, their settings as flags, and where each goes.

mod training;

use std::{
    fmt::Display,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgMatches, Command};
use distill_program::console;

use crate::{
    Error, Result,
    ablate::{self, AblateArgs},
    config::{Key, Keys, Resolved, Settings, TrainConfig, resolve, with_brief_help, with_flags},
    eval::{self, EvalConfig},
    export::{self, ExportConfig},
    generate::{self, ChatConfig, GenerateConfig, chat},
    loss_command::{self, LossesConfig},
    plan::{self, PlanConfig},
    pretrain::{self, PretrainConfig},
    push::{self, PushArgs},
    quantize::{self, QuantizeConfig},
    report,
    shutdown::{Outcome, Shutdown},
};

/// The whole command line.
pub fn command() -> Command {
    let about = |name: &'static str, about: &'static str| Command::new(name).about(about);
    fn settings<C: Settings>(command: Command) -> Command {
        with_brief_help(with_flags::<C>(command))
    }
    Command::new("student-trainer")
        .about("Distils a 4-bit student from a teacher's streamed logits")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_brief_help(
            with_flags::<TrainConfig>(about("train", "Train adapters on a teacher's blocks"))
                .arg(resume_flag()),
        ))
        .subcommand(settings::<EvalConfig>(about(
            "eval",
            "Cross-entropy and perplexity on text, and the distance to a teacher",
        )))
        .subcommand(settings::<GenerateConfig>(about(
            "generate",
            "Answer prompts with a student, its base or a teacher",
        )))
        .subcommand(settings::<ChatConfig>(about(
            "chat",
            "Talk with a student, its base or a teacher, on the terminal",
        )))
        .subcommand(
            about(
                "ablate",
                "Train arms that differ in their loss, with controls, and say which differences are real",
            )
            .arg(
                Arg::new("arms")
                    .value_name("ARMS_TOML")
                    .required(true)
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("Seeds, settings of train that all arms have, and what each has otherwise; see docs/ablate.md"),
            )
            .arg(
                Arg::new("out")
                    .long("out")
                    .value_name("DIR")
                    .required(true)
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("Directory for the runs, table.md and report.html; one that is there is gone on with"),
            )
            .arg(
                Arg::new("jobs")
                    .long("jobs")
                    .value_name("N")
                    .default_value("1")
                    .value_parser(clap::value_parser!(NonZeroUsize))
                    .help("Runs that are trained side by side; each takes the memory of one"),
            )
            .arg(
                Arg::new("json")
                    .long("json")
                    .action(clap::ArgAction::SetTrue)
                    .help("Print the results as JSON"),
            ),
        )
        .subcommand(settings::<PretrainConfig>(about(
            "pretrain",
            "Train a whole small model on text, without a teacher",
        )))
        .subcommand(settings::<QuantizeConfig>(about(
            "quantize",
            "Write a 4-bit base from safetensors or GGUF, with all or some of the layers",
        )))
        .subcommand(settings::<ExportConfig>(about(
            "export",
            "Merge an adapter into its base and write the model for Hugging Face or llama.cpp",
        )))
        .subcommand(settings::<PlanConfig>(about(
            "plan",
            "What every part takes on one card, before anything is loaded",
        )))
        .subcommand(
            about(
                "report",
                "Write report.html and report.md of a run anew, or compare several runs",
            )
            .arg(
                Arg::new("runs")
                    .value_name("RUN_DIR")
                    .num_args(1..)
                    .required(true)
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("Run directories of train or pretrain"),
            )
            .arg(
                Arg::new("out")
                    .long("out")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("Page to write, Markdown where it ends in .md; unset: report.html and report.md in the run's directory, where there is one run"),
            ),
        )
        .subcommand(push::command())
        .subcommand(settings::<LossesConfig>(about(
            "losses",
            "Evaluate any loss setting on dense logits",
        )))
}

/// Whether the command looks out for a request to stop; the others are over in seconds and end at once.
pub fn stops_in_order(matches: &ArgMatches) -> bool {
    !matches!(
        matches.subcommand_name(),
        Some("plan" | "losses" | "report")
    )
}

/// Whether Ctrl-C ends what the command does at the moment, and not the command.
pub fn survives_interrupts(matches: &ArgMatches) -> bool {
    matches.subcommand_name() == Some("chat")
}

/// Whether several processes may do the command together.
pub fn trains(matches: &ArgMatches) -> bool {
    matches.subcommand_name() == Some("train")
}

/// Does what the command line says.
///
/// # Errors
/// What stopped the command.
pub fn run(matches: &ArgMatches, shutdown: &Shutdown) -> Result<Outcome> {
    match matches.subcommand() {
        Some(("train", matches)) => training::train(matches, shutdown),
        Some(("eval", matches)) => with_config(matches, |config: &EvalConfig| {
            let report = eval::run(config, shutdown)?;
            if config.json {
                print(format_args!("{}\n", report.to_json()))?;
            } else {
                print(format_args!("{report}\n"))?;
            }
            Ok(shutdown.outcome(report.complete))
        }),
        Some(("generate", matches)) => with_config(matches, |config: &GenerateConfig| {
            Ok(shutdown.outcome(generate::run(config, shutdown)?))
        }),
        Some(("chat", matches)) => with_config(matches, |config: &ChatConfig| {
            Ok(shutdown.outcome(chat::run(config, shutdown)?))
        }),
        Some(("pretrain", matches)) => with_config(matches, |config| {
            let summary = pretrain::run(config, shutdown)?;
            tracing::info!(
                "{} after {} steps, cross-entropy {:.4}; model in {}",
                if summary.interrupted {
                    "stopped"
                } else {
                    "done"
                },
                summary.steps,
                summary.ce,
                summary.model.display()
            );
            Ok(shutdown.outcome(!summary.interrupted))
        }),
        Some(("quantize", matches)) => with_config(matches, |config| {
            let summary = quantize::run(config, shutdown)?;
            tracing::info!(
                "{} layers, {:.1} MB in bf16, {:.1} MB written; model in {}",
                summary.layers,
                summary.bf16_bytes as f64 / 1e6,
                summary.bytes as f64 / 1e6,
                summary.out.display()
            );
            Ok(Outcome::Complete)
        }),
        Some(("export", matches)) => with_config(matches, |config: &ExportConfig| {
            let summary = export::run(config, shutdown)?;
            if config.json {
                print(format_args!("{}\n", serde_json::json!(summary)))?;
            } else {
                tracing::info!("{summary}");
            }
            Ok(Outcome::Complete)
        }),
        Some(("plan", matches)) => with_config(matches, |config: &PlanConfig| {
            let report = plan::run(config, shutdown)?;
            if config.options.json {
                print(format_args!("{}\n", serde_json::json!(report)))?;
            } else {
                print(report)?;
            }
            Ok(Outcome::Complete)
        }),
        Some(("losses", matches)) => with_config(matches, |config: &LossesConfig| {
            let report = loss_command::run(config)?;
            if config.json {
                print(format_args!("{}\n", serde_json::json!(report)))?;
            } else {
                print(format_args!("{report}\n"))?;
            }
            Ok(Outcome::Complete)
        }),
        Some(("report", matches)) => write_report(matches),
        Some(("push", matches)) => {
            print(push::run(&PushArgs::of(matches), shutdown)?)?;
            Ok(Outcome::Complete)
        }
        Some(("ablate", matches)) => ablate(matches, shutdown),
        _ => Ok(Outcome::Complete),
    }
}

/// Prints the result of a command.
fn print(result: impl Display) -> Result<()> {
    console::print(result).map_err(Error::io("write to", Path::new("standard output")))
}

fn write_report(matches: &ArgMatches) -> Result<Outcome> {
    let runs: Vec<&Path> = matches
        .get_many::<PathBuf>("runs")
        .unwrap_or_default()
        .map(PathBuf::as_path)
        .collect();
    let out = match (matches.get_one::<PathBuf>("out"), runs.as_slice()) {
        (Some(out), runs) => {
            report::write_to(runs, out)?;
            out.clone()
        }
        (None, [run]) => report::write(run)?,
        (None, _) => {
            return Err(Error::Config(
                "out: name the page about several runs with --out FILE".into(),
            ));
        }
    };
    print(format_args!("{}\n", out.display()))?;
    Ok(Outcome::Complete)
}

fn ablate(matches: &ArgMatches, shutdown: &Shutdown) -> Result<Outcome> {
    let path = |name: &str| {
        matches
            .get_one::<PathBuf>(name)
            .cloned()
            .unwrap_or_default()
    };
    let args = AblateArgs {
        arms: path("arms"),
        out: path("out"),
        jobs: matches
            .get_one("jobs")
            .copied()
            .unwrap_or(NonZeroUsize::MIN),
    };
    let ablation = ablate::run(&args, shutdown)?;
    if matches.get_flag("json") {
        print(format_args!("{}\n", serde_json::json!(ablation)))?;
    } else {
        print(&ablation)?;
    }
    // Who asked for JSON is a program, which knows whether there is a same command.
    if !ablation.complete && !matches.get_flag("json") {
        tracing::info!("stopped; run the same command to go on");
    }
    Ok(shutdown.outcome(ablation.complete))
}

fn resume_flag() -> Arg {
    Arg::new("resume")
        .long("resume")
        .value_name("RUN_DIR")
        .value_parser(clap::value_parser!(PathBuf))
        .conflicts_with_all(["config", "out"])
        .help_heading("Settings")
        .help("Go on with this run from its newest checkpoint, with its settings")
}

/// Resolves a command's settings, and prints or uses them.
fn with_config<C: Settings>(
    matches: &ArgMatches,
    run: impl FnOnce(&C) -> Result<Outcome>,
) -> Result<Outcome> {
    with_resolved(matches, resolve::<C>(matches, &all_keys())?, run)
}

fn with_resolved<C: Settings>(
    matches: &ArgMatches,
    resolved: Resolved<C>,
    run: impl FnOnce(&C) -> Result<Outcome>,
) -> Result<Outcome> {
    if matches.get_flag("print_config") {
        let text = toml::to_string(&resolved.config).map_err(|e| {
            Error::Config(format!("the configuration cannot be written as TOML: {e}"))
        })?;
        print(text)?;
        return Ok(Outcome::Complete);
    }
    for idle in &resolved.idle {
        tracing::warn!("{idle}");
    }
    run(&resolved.config)
}

/// Every command's settings: one file may hold them all.
pub fn all_keys() -> Vec<Key> {
    [
        TrainConfig::keys(),
        EvalConfig::keys(),
        GenerateConfig::keys(),
        ChatConfig::keys(),
        PretrainConfig::keys(),
        QuantizeConfig::keys(),
        ExportConfig::keys(),
        PlanConfig::keys(),
        LossesConfig::keys(),
    ]
    .concat()
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
