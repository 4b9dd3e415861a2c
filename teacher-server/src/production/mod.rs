/*! Provides the production of frames on demand: readers say what they need, two threads compute and pack it.

```text
 Reader (async, one a stream) ── Demand ──> compute thread ── rows ──> packing thread ──> BlockStore ──> Reader
 ScoreTokens ───────────────── score jobs ──┤  (Forward)               (encode frames)
 Generate ──────────────────── answer jobs ─┘── pieces of text
```

Nothing is computed that no reader is about to need, so a server without clients rests within one batch, and a slow
reader, which reads from the store at its own pace, costs no memory. Where the device is lent to trainers (`lease`), the
teacher computes in turns of a window of frames each, and its weights are on the device for these only.
*/

mod answer;
mod demand;
mod reader;
mod score;
#[cfg(test)]
mod tests;
mod threads;
mod turns;

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use distill_model::Decoder;
use distill_proto::Rows;
use distill_text::Sequence;
use tokio::sync::watch;

use crate::{
    Error, Result, frames,
    lease::{self, Grant, Lease},
    plan::Plan,
    progress::Progress,
    store::{BlockStore, OrderDigest, StoredBlock},
};
pub use answer::ANSWER_JOBS_MAX;
use answer::Answers;
use demand::Demand;
pub use demand::Order;
pub use reader::Reader;
pub use score::OwnedTokens;
use score::{ScoreJob, Scores};
use threads::Seat;
pub use turns::{Reload, Swap};

/// Streams and fetches open at a time.
pub const READERS_MAX: usize = 256;
/// ScoreTokens requests that wait at a time; how many of them may be one connection's is said in `connections`.
pub const SCORE_JOBS_MAX: usize = 64;

/// A sequence as the teacher needs it.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// For messages.
    pub id: u64,
    /// Names the sequence to its draws: by what the teacher reads of it.
    pub draw_id: u64,
    /// T ids below the effective vocabulary.
    pub token_ids: &'a [u32],
    /// T flags; the first is false.
    pub target_mask: &'a [bool],
}

impl<'a> Tokens<'a> {
    /// A sequence of the plan.
    pub fn of(sequence: &'a Sequence) -> Self {
        Self {
            id: sequence.id,
            // So that another view of the student's changes no draw.
            draw_id: sequence.content_id,
            token_ids: &sequence.token_ids,
            target_mask: &sequence.target_mask,
        }
    }
}

/// The teacher: rows for the targets of a batch of sequences.
pub trait Forward: Send {
    /// One `Rows` for every sequence.
    ///
    /// # Errors
    /// What the model or the selection says.
    fn rows(&self, batch: &[Tokens<'_>]) -> Result<Vec<Rows>>;

    /// What answers prompts; `None` where nothing does.
    fn decoder(&self) -> Option<&Decoder> {
        None
    }
}

/// Who waits for the teacher, and whether it has its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Open streams of frames.
    pub readers: usize,
    /// Sequences to be scored.
    pub scores: usize,
    /// Prompts to be answered.
    pub answers: usize,
    /// Whether a trainer has the device.
    pub is_lent: bool,
    /// Trainers that wait for it.
    pub holders_waiting: usize,
}

/// Computes frames on demand and keeps them.
pub struct Production {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the threads and the readers share.
struct Shared {
    plan: Arc<Plan>,
    store: Box<dyn BlockStore>,
    queue: usize,
    state: Mutex<State>,
    /// Wakes the compute thread: somebody may need something.
    work: Condvar,
    /// Wakes readers: a batch is done, failed, or the server stops. The value only counts.
    changes: watch::Sender<u64>,
    /// Over what is served in order, made when the first reader comes to its end.
    digest: Mutex<OrderDigest>,
    sequences_done: AtomicU64,
    sequences_computed: AtomicU64,
    work_done: WorkDone,
}

/// What the plan's frames have cost so far.
#[derive(Default)]
struct WorkDone {
    tokens: AtomicU64,
    bytes: AtomicU64,
    compute_nanos: AtomicU64,
}

/// What the teacher has done for its plan since it started; scored sequences are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Tokens of the sequences computed.
    pub tokens: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Seconds in forward passes and selection, waiting left out.
    pub compute_seconds: f64,
}

impl Totals {
    /// Tokens in a second of computing.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.compute_seconds.max(1e-9)
    }

    /// Bytes of a frame for each of its tokens.
    pub fn bytes_per_token(&self) -> f64 {
        self.bytes as f64 / self.tokens.max(1) as f64
    }
}

#[derive(Default)]
struct State {
    demand: Demand,
    scores: Scores,
    /// Whether the teacher's last batch was one of scores: the next one is the plan's, where one is needed.
    scored_last: bool,
    answers: Answers,
    closing: bool,
    /// Whose turn the device is, where it is lent.
    lease: Option<Lease>,
}

impl State {
    /// Somebody asks for something that the teacher may have to do.
    fn asked(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.retry();
        }
    }

    /// What keeps the teacher from its turn, if something does.
    fn trouble(&self) -> Option<Error> {
        let trouble = self.lease.as_ref()?.trouble()?;
        Some(Error::Production(trouble))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block that is served at `position`; `None` where it is not kept.
    fn block(&self, position: u64) -> Result<Option<StoredBlock>> {
        let Some(place) = self.plan.place(position) else {
            return Ok(None);
        };
        let kept = self.store.get(place)?;
        let address = |kept| frames::address(self.plan.fingerprint, kept, position);
        kept.map(address).transpose()
    }

    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Production {
    /// Starts the two threads over a loaded teacher and a store.
    ///
    /// # Errors
    /// `Io` where the system gives no thread.
    pub fn start(
        teacher: Box<dyn Forward>,
        plan: Arc<Plan>,
        store: Box<dyn BlockStore>,
        queue: usize,
        progress: Progress,
    ) -> Result<Self> {
        Self::begin(Seat::Resident(teacher), None, plan, store, queue, progress)
    }

    /// As [`Self::start`], with a teacher that leaves the device to trainers between its turns.
    ///
    /// # Errors
    /// `Io` where the system gives no thread.
    pub fn start_swapping(
        swap: Swap,
        lease: Lease,
        plan: Arc<Plan>,
        store: Box<dyn BlockStore>,
        progress: Progress,
    ) -> Result<Self> {
        let window = lease.options().window;
        Self::begin(
            Seat::Swapping(swap),
            Some(lease),
            plan,
            store,
            window,
            progress,
        )
    }

    fn begin(
        seat: Seat,
        lease: Option<Lease>,
        plan: Arc<Plan>,
        store: Box<dyn BlockStore>,
        queue: usize,
        progress: Progress,
    ) -> Result<Self> {
        let served = (0..plan.served_count()).filter_map(|position| plan.place(position));
        let done = served.filter(|&place| store.contains(place)).count();
        let state = State {
            lease,
            ..State::default()
        };
        let shared = Arc::new(Shared {
            plan,
            store,
            queue,
            state: Mutex::new(state),
            work: Condvar::new(),
            changes: watch::Sender::new(0),
            digest: Mutex::default(),
            sequences_done: AtomicU64::new(done as u64),
            sequences_computed: AtomicU64::new(0),
            work_done: WorkDone::default(),
        });
        let threads = threads::spawn(&shared, seat, progress)?;
        Ok(Self {
            shared,
            threads: Mutex::new(threads),
        })
    }

    /// Opens a reader.
    ///
    /// # Errors
    /// `Busy` above `READERS_MAX`, `ShuttingDown`.
    pub fn reader(&self, order: Order) -> Result<Reader> {
        let mut state = self.shared.state();
        if state.closing {
            return Err(Error::ShuttingDown);
        }
        if state.demand.readers() >= READERS_MAX {
            return Err(Error::Busy {
                what: "streams",
                limit: READERS_MAX,
            });
        }
        state.asked();
        let id = state.demand.open(order.clone());
        drop(state);
        self.shared.work.notify_all();
        Ok(Reader::new(self.shared.clone(), id, order))
    }

    /// A trainer asks for the device; its stream hears of the grant. Gives the stream's name for [`Self::hold_ended`].
    ///
    /// # Errors
    /// `NothingToLend`, `StaleEpoch`, `Busy` above `HOLDERS_MAX`, `ShuttingDown`.
    pub fn hold(
        &self,
        holder: &str,
        held: Option<Grant<'_>>,
        messages: lease::Messages,
    ) -> Result<u64> {
        self.with_lease(|lease| lease.ask(holder, held, messages))?
    }

    /// A trainer says that it has freed the device.
    ///
    /// # Errors
    /// `NothingToLend`, `StaleEpoch`, `ShuttingDown`.
    pub fn release(&self, grant: Grant<'_>) -> Result<()> {
        self.with_lease(|lease| lease.released(grant))?
    }

    /// The stream of a `hold` has ended.
    pub fn hold_ended(&self, stream: u64) {
        // After a shutdown there is nobody left to be told.
        let _ = self.with_lease(|lease| lease.closed(stream));
    }

    fn with_lease<T>(&self, act: impl FnOnce(&mut Lease) -> T) -> Result<T> {
        let mut state = self.shared.state();
        if state.closing {
            return Err(Error::ShuttingDown);
        }
        let lease = state.lease.as_mut().ok_or(Error::NothingToLend)?;
        let outcome = act(lease);
        drop(state);
        self.shared.work.notify_all();
        self.shared.changed();
        Ok(outcome)
    }

    /// Positions of the frames that are to be served and are not kept, of the shards that `mine` says, in the plan's order.
    pub fn missing(&self, mine: impl Fn(u32) -> bool) -> Vec<u64> {
        let Shared { plan, store, .. } = self.shared.as_ref();
        let served = (0..plan.served_count()).filter_map(|at| Some((plan.place(at)?, at)));
        let missing =
            |&(place, _): &(u64, u64)| !store.contains(place) && mine(store.shard_of(place));
        let mut missing: Vec<(u64, u64)> = served.filter(missing).collect();
        missing.sort_unstable();
        missing.into_iter().map(|(_, position)| position).collect()
    }

    /// Whether every frame that is to be served is kept.
    pub fn complete(&self) -> bool {
        self.missing(|_| true).is_empty()
    }

    /// Sequences kept so far of those that are served.
    pub fn sequences_done(&self) -> u64 {
        self.shared.sequences_done.load(Ordering::Relaxed)
    }

    /// Sequences that the teacher has run on, scored ones included.
    pub fn sequences_computed(&self) -> u64 {
        self.shared.sequences_computed.load(Ordering::Relaxed)
    }

    /// What the plan's frames have cost so far.
    pub fn totals(&self) -> Totals {
        let WorkDone {
            tokens,
            bytes,
            compute_nanos,
        } = &self.shared.work_done;
        Totals {
            tokens: tokens.load(Ordering::Relaxed),
            bytes: bytes.load(Ordering::Relaxed),
            compute_seconds: compute_nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }

    /// What is waited for now.
    pub fn pressure(&self) -> Pressure {
        let state = self.shared.state();
        let lease = state.lease.as_ref();
        Pressure {
            readers: state.demand.readers(),
            scores: state.scores.len(),
            answers: state.answers.len(),
            is_lent: lease.is_some_and(|lease| lease.holder().is_some()),
            holders_waiting: lease.map_or(0, Lease::waiting),
        }
    }

    /// Finishes the batch under way, then stops; readers are told. Returns at once.
    pub fn close(&self) {
        self.shared.state().closing = true;
        self.shared.work.notify_all();
        self.shared.changed();
    }

    /// Puts what is kept where it is to be, as far as that has failed so far.
    ///
    /// # Errors
    /// `Io` naming the place.
    pub fn flush(&self) -> Result<()> {
        self.shared.store.flush()
    }

    /// Waits until both threads have ended, after `close`.
    pub fn join(&self) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a production thread ended in a panic");
            }
        }
    }
}

impl Drop for Production {
    fn drop(&mut self) {
        self.close();
        self.join();
    }
}
