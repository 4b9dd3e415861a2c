//! Provides the teacher's turns on a device that it shares with trainers: when there is one, and what it takes.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Forward, Shared, State,
    threads::{Work, by_turns},
};
use crate::{
    Error, Result,
    lease::{FreeMemory, Lease, Task},
};

/// Between two looks at the device's memory.
const ROOM_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A teacher that can be brought to the device again and again.
pub trait Reload: Send {
    /// Memory of the device that it takes.
    fn device_bytes(&self) -> u64;

    /// Brings it there.
    ///
    /// # Errors
    /// What the model says.
    fn load(&self) -> Result<Box<dyn Forward>>;

    /// Hands the device back what the teacher had, after it was dropped.
    ///
    /// # Errors
    /// What the device says.
    fn settle(&self) -> Result<()>;
}

/// A teacher that is on the device in its turns only.
pub struct Swap {
    /// Where it comes from.
    pub source: Box<dyn Reload>,
    /// Whether it can come.
    pub memory: Box<dyn FreeMemory>,
}

impl Swap {
    /// Does what the lease asks of the teacher beside computing.
    pub(super) fn attend(
        &self,
        shared: &Shared,
        task: Task,
        teacher: &mut Option<Box<dyn Forward>>,
    ) {
        match task {
            Task::AwaitRoom => self.look_for_room(shared),
            Task::Load => {
                let panicked =
                    |_| Error::Internal("loading the teacher panicked; see the log".into());
                let loaded = catch_unwind(AssertUnwindSafe(|| self.source.load()));
                match loaded.map_err(panicked).flatten() {
                    Ok(loaded) => {
                        *teacher = Some(loaded);
                        with_lease(shared, Lease::loaded);
                    }
                    Err(error) => {
                        tracing::error!("the teacher cannot be loaded: {error}");
                        let error = Arc::new(error);
                        with_lease(shared, |lease| lease.load_failed(error.clone()));
                        tell_scores(shared, &error);
                    }
                }
            }
            Task::Free => {
                *teacher = None;
                if let Err(error) = self.source.settle() {
                    tracing::warn!("the device may not have taken its memory back: {error}");
                }
                with_lease(shared, Lease::freed);
            }
            Task::Work => {}
        }
        shared.changed();
    }

    /// Looks once; comes back after a while, or earlier where something happens meanwhile.
    fn look_for_room(&self, shared: &Shared) {
        let needed = self.source.device_bytes();
        let memory = self.memory.look().unwrap_or_else(|error| {
            tracing::warn!("the device does not say how much memory is free: {error}");
            None
        });
        // Where nothing is known only a try can tell.
        let Some(memory) = memory.filter(|memory| memory.free_bytes < needed) else {
            with_lease(shared, Lease::room);
            return;
        };
        let mut state = shared.state();
        let lease = state.lease.as_mut();
        if lease.is_some_and(|lease| lease.no_room(needed, memory)) {
            let trouble = state.lease.as_ref().and_then(Lease::trouble);
            drop(state);
            if let Some(trouble) = trouble {
                tracing::error!("{trouble}");
                tell_scores(shared, &trouble);
            }
            shared.changed();
            state = shared.state();
        }
        let waited = shared.work.wait_timeout(state, ROOM_POLL_INTERVAL);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

fn with_lease(shared: &Shared, act: impl FnOnce(&mut Lease)) {
    if let Some(lease) = &mut shared.state().lease {
        act(lease);
    }
}

/// Those who wait for scores hear what keeps the teacher from them.
fn tell_scores(shared: &Shared, trouble: &Arc<Error>) {
    let jobs = shared.state().scores.drain();
    for job in jobs {
        drop(job.reply.send(Err(Error::Production(trouble.clone()))));
    }
}

/// What the teacher's thread has to do now, where the device is lent.
pub(super) fn next_work(shared: &Shared, state: &mut State) -> Option<Work> {
    let plan = &shared.plan;
    let contains = |index| shared.store.contains(index);
    let State {
        demand,
        scores,
        scored_last,
        lease,
        ..
    } = state;
    let lease = lease.as_mut()?;
    scores.forget_abandoned();
    if lease.tick(Instant::now())
        && let Some(trouble) = lease.trouble()
    {
        tracing::error!("{trouble}");
        for job in scores.drain() {
            drop(job.reply.send(Err(Error::Production(trouble.clone()))));
        }
        shared.changed();
    }
    lease.needed(!scores.is_empty() || demand.is_needed(plan, contains));
    while let Some(task) = lease.task() {
        if task != Task::Work {
            return Some(Work::Device(task));
        }
        demand.open_window(plan, shared.queue, contains, scores.next_number());
        // Scores that are asked for during a turn are for the next one, or a trainer that waits would wait for ever.
        let before = demand.window_scores();
        let work = by_turns(
            scored_last,
            || scores.pop_before(before),
            || demand.next_of_window(plan, shared.queue, contains),
        );
        if work.is_some() {
            return work;
        }
        // With nobody waiting for the device the next turn begins at once.
        demand.close_window();
        lease.needed(!scores.is_empty() || demand.is_needed(plan, contains));
        lease.turn_over();
    }
    None
}

/// Waits until something has changed, or until the lease wants to look at the clock.
pub(super) fn wait<'a>(shared: &'a Shared, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    let deadline = state.lease.as_ref().and_then(Lease::deadline);
    match deadline {
        None => shared
            .work
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner),
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            let waited = shared.work.wait_timeout(state, left);
            waited.unwrap_or_else(PoisonError::into_inner).0
        }
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
