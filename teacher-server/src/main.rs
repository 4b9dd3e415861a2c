//! Provides the `teacher-server` command.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use teacher_server::{
    cli::{Args, Command, PrecomputeArgs, ServeArgs},
    config::Config,
    precompute::{self, Outcome},
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
    let Args { command } = Args::parse();
    let result = match command {
        Command::Serve(args) => serve(&args).map(|()| Outcome::Complete),
        Command::Precompute(args) => precompute(&args),
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

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let config = Config::validate(args)?;
    if args.print_config {
        print!("{}", config.to_toml()?);
        return Ok(());
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let result = runtime.block_on(async {
        let signal = shutdown::signals()?;
        teacher_server::run(config, signal).await
    });
    // Loading may still be under way; nothing of it is worth waiting for.
    runtime.shutdown_background();
    Ok(result?)
}

fn precompute(args: &PrecomputeArgs) -> anyhow::Result<Outcome> {
    let mut config = Config::validate(&args.serve)?;
    config.part = args.shard;
    if args.serve.print_config {
        print!("{}", config.to_toml()?);
        return Ok(Outcome::Complete);
    }
    if args.dry_run {
        precompute::dry_run(&config)?;
        return Ok(Outcome::Complete);
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let result = runtime.block_on(async {
        let signal = shutdown::signals()?;
        precompute::run(config, signal).await
    });
    runtime.shutdown_background();
    Ok(result?)
}
