//! Provides the `teacher-server` command.

mod commands;

use std::process::ExitCode;

use teacher_server::{
    cli::{Args, Command},
    precompute::Outcome,
    shutdown,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    distill_model::threads::configure();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let Args { command } = Args::read();
    let result = match command {
        Command::Serve(args) => commands::serve(&args),
        Command::Precompute(args) => commands::precompute(&args),
        Command::Inspect(args) => commands::inspect(&args),
        Command::Verify(args) => commands::verify(&args),
        Command::Merge(args) => commands::merge(&args),
    };
    match result {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(shutdown::INTERRUPTED),
        Err(error) => {
            eprintln!("teacher-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}
