//! Provides the `teacher-server` command.

mod commands;

use std::process::ExitCode;

use clap::Parser;
use teacher_server::{
    cli::{Args, Command},
    precompute::Outcome,
    shutdown,
};
use tracing_subscriber::EnvFilter;

/// What is logged where RUST_LOG says nothing else. Libraries warn about every client that breaks a rule, which would let clients
/// fill the disk.
const LOG_FILTER: &str = "warn,h2=error,hyper=error,rustls=error,tonic=error";

fn main() -> ExitCode {
    distill_model::threads::configure();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let Args { command } = Args::parse();
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
