//! Starts `student-trainer`: logging, signals, and the command.

use std::{io::IsTerminal, process::ExitCode};

use student_trainer::{cli, shutdown::Shutdown};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    distill_model::threads::configure();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Messages carry their causes themselves.
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let shutdown = Shutdown::default();
    shutdown.on_signals()?;
    Ok(cli::run(std::env::args_os(), &shutdown)?)
}
