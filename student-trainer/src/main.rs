//! Starts `student-trainer`: logging, signals, and the command.

use std::{io::IsTerminal, process::ExitCode};

use student_trainer::{
    cli,
    shutdown::{Outcome, Shutdown},
};
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
    let matches = cli::command().get_matches();
    let stops_in_order = cli::stops_in_order(&matches);
    let shutdown = Shutdown::default();
    let signals = shutdown.on_signals(move |signal| {
        if !stops_in_order {
            std::process::exit(signal.exit_status().into());
        }
        tracing::warn!("{signal}: stopping after this step; a second Ctrl-C exits at once");
    });
    if let Err(error) = signals {
        eprintln!("error: cannot handle signals: {error}");
        return ExitCode::FAILURE;
    }
    match cli::run(&matches, &shutdown) {
        Ok(outcome) => shutdown.exit_code(outcome),
        Err(error) => {
            // Messages carry their causes themselves.
            eprintln!("error: {error}");
            match error.is_stop() {
                true => shutdown.exit_code(Outcome::Interrupted),
                false => ExitCode::FAILURE,
            }
        }
    }
}
