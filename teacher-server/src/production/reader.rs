//! Provides a reader: one client's place in the plan.

use std::sync::{Arc, PoisonError, atomic::Ordering};

use distill_proto::Fingerprint;
use tokio::sync::watch;

use super::{Order, Shared};
use crate::{Error, Result, store::StoredBlock};

/// One client's place in the plan; what it needs next is computed while it is open.
pub struct Reader {
    shared: Arc<Shared>,
    id: u64,
    order: Order,
    position: usize,
    changes: watch::Receiver<u64>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, id: u64, order: Order) -> Self {
        let changes = shared.changes.subscribe();
        Self {
            shared,
            id,
            order,
            position: 0,
            changes,
        }
    }

    /// Place in the plan of the next frame; `None` at the end.
    pub fn upcoming(&self) -> Option<u64> {
        self.order.at(self.position, &self.shared.plan)
    }

    /// Position in what is served of the next frame, and the sequence that it is about; `None` at the end.
    pub fn names(&self) -> Option<(u64, u64)> {
        let entry = usize::try_from(self.upcoming()?).ok()?;
        let entry = self.shared.plan.entries().get(entry)?;
        Some((self.order.position(self.position)?, entry.id))
    }

    /// Whether the next frame is kept already.
    pub fn is_kept(&self) -> bool {
        let store = &self.shared.store;
        self.upcoming().is_some_and(|index| store.contains(index))
    }

    /// Waits until the next frame is kept; true at the end of the order. May be dropped and called again.
    ///
    /// # Errors
    /// What stopped its batch or keeps the teacher from its turn, or `ShuttingDown`.
    pub async fn ready(&mut self) -> Result<()> {
        let Some(index) = self.upcoming() else {
            return Ok(());
        };
        loop {
            self.changes.borrow_and_update();
            {
                let state = self.shared.state();
                if state.closing {
                    return Err(Error::ShuttingDown);
                }
                if self.shared.store.contains(index) {
                    return Ok(());
                }
                let batch = self.shared.plan.batch_of(index);
                if let Some(error) = state.demand.failure(batch) {
                    return Err(Error::Production(error));
                }
                if let Some(trouble) = state.trouble() {
                    return Err(trouble);
                }
            }
            self.wait().await?;
        }
    }

    /// The next frame, after `ready`; moves on.
    ///
    /// # Errors
    /// What the store says.
    pub async fn take(&mut self) -> Result<Option<StoredBlock>> {
        let Some(position) = self.order.position(self.position) else {
            return Ok(None);
        };
        let shared = self.shared.clone();
        let block = tokio::task::spawn_blocking(move || shared.block(position))
            .await
            .map_err(|e| Error::Internal(e.to_string()))?
            .inspect_err(tell)?;
        match block {
            Some(_) => self.skip(),
            // Found damaged and dropped since `ready`: somebody has to compute it.
            None => self.shared.work.notify_all(),
        }
        Ok(block)
    }

    /// Moves on without reading the next frame.
    pub fn skip(&mut self) {
        self.position += 1;
        self.shared.state().demand.advance(self.id);
        self.shared.work.notify_all();
    }

    /// The digest over all that is served; `None` where not all of it is kept.
    ///
    /// # Errors
    /// What the store says.
    pub async fn digest(&self) -> Result<Option<Fingerprint>> {
        let shared = self.shared.clone();
        let count = shared.plan.served_count();
        if shared.sequences_done.load(Ordering::Acquire) < count {
            return Ok(None);
        }
        // Reading all of a long plan takes its time, once.
        let advance = move || {
            let mut digest = shared.digest.lock().unwrap_or_else(PoisonError::into_inner);
            digest.advance(|position| shared.block(position), count)
        };
        tokio::task::spawn_blocking(advance)
            .await
            .map_err(|e| Error::Internal(e.to_string()))?
            .inspect_err(tell)
    }

    /// Sequences kept so far, for heartbeats.
    pub fn sequences_done(&self) -> u64 {
        self.shared.sequences_done.load(Ordering::Relaxed)
    }

    async fn wait(&mut self) -> Result<()> {
        self.changes
            .changed()
            .await
            .map_err(|_| Error::ShuttingDown)
    }
}

/// Tells whoever runs the server what the store said; a client hears no paths.
fn tell(error: &Error) {
    tracing::error!("a kept block cannot be read: {error}");
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.state().demand.close(self.id);
        // What was needed for it is not any more.
        self.shared.work.notify_all();
    }
}
