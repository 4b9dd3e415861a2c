//! Provides the wish to stop: the first signal finishes the step and saves, the second exits at once.

use std::sync::Arc;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Exit status after a second signal: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// A flag that many wait for and one raises.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<watch::Sender<bool>>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Shutdown {
    /// Asks everyone to stop.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    /// Whether someone asked.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once someone asked.
    pub async fn requested(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|requested| *requested).await;
    }

    /// Raises the flag on SIGINT and SIGTERM; a second signal ends the process. Listens on a thread of its own.
    ///
    /// # Errors
    /// The system refuses a signal handler or a thread.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (mut interrupt, mut terminate) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            )
        };
        let shutdown = self.clone();
        let listen = async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if shutdown.is_requested() {
                    std::process::exit(INTERRUPTED);
                }
                tracing::warn!("stopping after this step; signal again to exit at once");
                shutdown.request();
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned());
        thread.spawn(move || runtime.block_on(listen))?;
        Ok(())
    }
}
