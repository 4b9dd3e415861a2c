//! Provides the reaction to signals: the first one stops in order, the second one at once.

use std::{future::Future, path::Path};

use tokio::signal::unix::{SignalKind, signal};

use crate::{Error, Result};

/// Exit status after a second interrupt, as a shell reports SIGINT.
pub const INTERRUPTED: u8 = 130;

/// Resolves on the first SIGINT or SIGTERM; the second ends the process at once.
///
/// # Errors
/// `Io` where the handlers cannot be installed. Call it inside a runtime.
pub fn signals() -> Result<impl Future<Output = ()>> {
    let handler = |kind| signal(kind).map_err(Error::io("handle", Path::new("signals")));
    let mut interrupt = handler(SignalKind::interrupt())?;
    let mut terminate = handler(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(INTERRUPTED.into());
        });
    })
}
