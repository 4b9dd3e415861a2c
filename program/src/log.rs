//! Provides the log of a program: lines on standard error, which may be lost and never end it.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::console;

/// Logs what `RUST_LOG` asks for, or from `level` on.
pub fn start(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| console::Log)
        // It would say so with `eprintln!`.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}
