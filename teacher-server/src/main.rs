//! Provides the `teacher-server` command.

mod commands;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use teacher_server::{
    cli::{Args, Command},
    shutdown::{Outcome, Shutdown},
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    distill_model::threads::configure();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let Args { command } = Args::parse();
    let shutdown = Shutdown::default();
    match run(&command, &shutdown) {
        Ok(outcome) => shutdown.exit_code(outcome),
        Err(error) => {
            eprintln!("teacher-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command, shutdown: &Shutdown) -> anyhow::Result<Outcome> {
    let stops_in_order = !matches!(command, Command::Inspect(_) | Command::Merge(_));
    let signals = shutdown.on_signals(move |signal| {
        if !stops_in_order {
            std::process::exit(signal.exit_status().into());
        }
    });
    signals.context("cannot handle signals")?;
    match command {
        Command::Serve(args) => commands::serve(args, shutdown),
        Command::Precompute(args) => commands::precompute(args, shutdown),
        Command::Inspect(args) => commands::inspect(args),
        Command::Verify(args) => commands::verify(args, shutdown),
        Command::Merge(args) => commands::merge(args),
    }
}
