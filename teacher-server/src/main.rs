//! Provides the `teacher-server` command.

mod commands;

use std::process::ExitCode;

use anyhow::Context;
use distill_program::{Outcome, Shutdown, console, log};
use teacher_server::cli::{Args, Command};

/// What is logged where RUST_LOG says nothing else. Libraries warn about every client that breaks a rule, which would let clients
/// fill the disk.
const LOG_FILTER: &str = "warn,h2=error,hyper=error,rustls=error,tonic=error";

fn main() -> ExitCode {
    distill_model::threads::configure();
    log::start(LOG_FILTER);
    let command = match Args::read() {
        Ok(args) => args.command,
        Err(usage) => return console::answer(&usage),
    };
    let shutdown = Shutdown::default();
    match run(&command, &shutdown) {
        Ok(outcome) => shutdown.exit_code(outcome),
        Err(error) => {
            console::say(format_args!("teacher-server: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command, shutdown: &Shutdown) -> anyhow::Result<Outcome> {
    let stops_in_order = !matches!(command, Command::Precompute(args) if args.dry_run);
    let signals = shutdown.on_signals(move |signal| {
        if !stops_in_order {
            std::process::exit(signal.exit_status().into());
        }
    });
    signals.context("cannot handle signals")?;
    match command {
        Command::Serve(args) => commands::serve(args, shutdown),
        Command::Precompute(args) => commands::precompute(args, shutdown),
        Command::Inspect(args) => commands::inspect(args, shutdown),
        Command::Verify(args) => commands::verify(args, shutdown),
        Command::Merge(args) => commands::merge(args, shutdown),
    }
}
