//! Provides the two threads behind the readers: one runs the teacher, one packs and keeps what it says.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Instant,
};

use distill_proto::Rows;

use super::{Forward, ScoreJob, Shared, State, Swap, Tokens, answer, turns};
use crate::{Error, Result, answers::AnswerJob, frames::encode, lease::Task, progress::Progress};

/// Batches that wait for packing while the teacher runs on.
const PACKING_QUEUE: usize = 1;

/// Rows of one batch on their way to the store.
pub(super) struct Computed {
    batch: u64,
    /// Places in the plan's order that the teacher ran on, and its rows for each.
    rows: Vec<(usize, Rows)>,
}

/// Where the teacher is.
pub(super) enum Seat {
    /// In memory, always.
    Resident(Box<dyn Forward>),
    /// On the device in its turns.
    Swapping(Swap),
}

pub(super) enum Work {
    Batch(u64),
    Score(ScoreJob),
    Answer(Box<AnswerJob>),
    /// Something about the device.
    Device(Task),
    Stop,
}

/// Starts both threads.
///
/// # Errors
/// `Io` where the system gives no thread.
pub(super) fn spawn(
    shared: &Arc<Shared>,
    seat: Seat,
    progress: Progress,
) -> Result<Vec<JoinHandle<()>>> {
    let (sender, receiver) = sync_channel(PACKING_QUEUE);
    let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let failed = |e| Error::io("start a thread for", Path::new("the teacher"))(e);
    let (computing, packing) = (shared.clone(), shared.clone());
    Ok(vec![
        named("teacher")
            .spawn(move || compute(&computing, seat, &sender))
            .map_err(failed)?,
        named("packing")
            .spawn(move || pack(&packing, &receiver, progress))
            .map_err(failed)?,
    ])
}

/// Runs the teacher until the server stops; ends the packing thread by dropping the sender.
fn compute(shared: &Shared, seat: Seat, packing: &SyncSender<Computed>) {
    let (mut teacher, swap) = match seat {
        Seat::Resident(teacher) => (Some(teacher), None),
        Seat::Swapping(swap) => (None, Some(swap)),
    };
    loop {
        match (next_work(shared), &teacher, &swap) {
            (Work::Stop, ..) => return,
            (Work::Device(task), _, Some(swap)) => swap.attend(shared, task, &mut teacher),
            (Work::Score(job), Some(teacher), _) => score(shared, teacher.as_ref(), job),
            (Work::Batch(batch), Some(teacher), _) => {
                compute_batch(shared, teacher.as_ref(), batch, packing);
            }
            (Work::Answer(job), Some(teacher), _) => {
                answer::write(shared, teacher.as_ref(), &job, packing);
            }
            // Work is given out for a teacher that is there only.
            (Work::Score(job), None, _) => drop(job.reply.send(Err(Error::NoModel))),
            (Work::Batch(batch), None, _) => finish(shared, batch, Err(Error::NoModel)),
            (Work::Answer(job), None, _) => job.refuse(Error::NoModel),
            (Work::Device(_), _, None) => return,
        }
    }
}

pub(super) fn compute_batch(
    shared: &Shared,
    teacher: &dyn Forward,
    batch: u64,
    packing: &SyncSender<Computed>,
) {
    let started = Instant::now();
    match plan_batch(shared, teacher, batch) {
        Ok((rows, count)) => {
            let nanos = started.elapsed().as_nanos() as u64;
            let done = &shared.work_done;
            done.compute_nanos.fetch_add(nanos, Ordering::Relaxed);
            done.tokens.fetch_add(count, Ordering::Relaxed);
            if packing.send(Computed { batch, rows }).is_err() {
                let ended = Error::Internal("packing has ended".into());
                finish(shared, batch, Err(ended));
            }
        }
        Err(error) => finish(shared, batch, Err(error)),
    }
}

/// Rows of a batch of the plan, each with its place, and the tokens of all.
fn plan_batch(
    shared: &Shared,
    teacher: &dyn Forward,
    batch: u64,
) -> Result<(Vec<(usize, Rows)>, u64)> {
    let sequence = |&index: &usize| {
        let missing = || Error::NoText {
            index: index as u64,
        };
        Ok(Tokens::of(shared.plan.sequence(index).ok_or_else(missing)?))
    };
    let places = places_to_compute(shared, batch);
    let tokens = places.iter().map(sequence);
    let tokens = tokens.collect::<Result<Vec<Tokens<'_>>>>()?;
    let count = tokens.iter().map(|t| t.token_ids.len() as u64).sum();
    let rows = run(shared, teacher, &tokens)?;
    Ok((places.into_iter().zip(rows).collect(), count))
}

/// The sequences of a batch that the teacher runs on. One that takes its rows from another frame is not among them, unless
/// that frame was lost: a batch has the same shape whatever was there before. Nor is one that is not in the corpus any more,
/// so that its text is gone.
fn places_to_compute(shared: &Shared, batch: u64) -> Vec<usize> {
    let entries = shared.plan.entries();
    let is_computed = |&index: &usize| {
        let takes_rows = entries
            .get(index)
            .is_some_and(|entry| entry.source.is_some());
        let index = index as u64;
        shared.plan.is_served(index) && (!takes_rows || !shared.store.contains(index))
    };
    shared.plan.batch(batch).filter(is_computed).collect()
}

/// Waits for something to do. Scores and the plan's batches take turns, so that neither starves those who wait for the other.
fn next_work(shared: &Shared) -> Work {
    let mut state = shared.state();
    loop {
        if state.closing {
            // Dropping the jobs tells those who wait for them.
            drop((state.scores.drain(), state.answers.drain()));
            if let Some(lease) = &mut state.lease {
                lease.close();
            }
            return Work::Stop;
        }
        let found = match state.lease {
            Some(_) => turns::next_work(shared, &mut state),
            None => answer::next_work(shared, &mut state),
        };
        if let Some(work) = found {
            return work;
        }
        state = turns::wait(shared, state);
    }
}

/// What the plan's readers or those who wait for scores need now, where nothing is lent.
pub(super) fn next_batch_or_score(shared: &Shared, state: &mut State) -> Option<Work> {
    let contains = |index| shared.store.contains(index);
    let State {
        demand,
        scores,
        scored_last,
        ..
    } = state;
    by_turns(
        scored_last,
        || scores.pop_before(u64::MAX),
        || demand.next_batch(&shared.plan, shared.queue, contains),
    )
}

/// A batch of scores after one of the plan and the other way round, where there are both.
pub(super) fn by_turns(
    scored_last: &mut bool,
    score: impl FnOnce() -> Option<ScoreJob>,
    batch: impl FnOnce() -> Option<u64>,
) -> Option<Work> {
    let score = || score().map(Work::Score);
    let batch = || batch().map(Work::Batch);
    let work = if *scored_last {
        batch().or_else(score)
    } else {
        score().or_else(batch)
    }?;
    *scored_last = matches!(work, Work::Score(_));
    Some(work)
}

/// One batch of a job; for the rest its client waits until the others had theirs.
pub(super) fn score(shared: &Shared, teacher: &dyn Forward, mut job: ScoreJob) {
    if job.reply.is_closed() {
        return;
    }
    let rows = run(shared, teacher, &job.batch(shared.plan.batch_size()));
    match rows {
        Err(error) => drop(job.reply.send(Err(error))),
        Ok(rows) => {
            job.done.extend(rows);
            if job.done.len() < job.sequences.len() {
                shared.state().scores.put_back(job);
            } else {
                drop(job.reply.send(Ok(job.done)));
            }
        }
    }
}

/// The teacher on one batch; a panic below becomes an error of this batch alone.
fn run(shared: &Shared, teacher: &dyn Forward, batch: &[Tokens<'_>]) -> Result<Vec<Rows>> {
    let panicked = |_| Error::Internal("the teacher's forward pass panicked; see the log".into());
    let rows = catch_unwind(AssertUnwindSafe(|| teacher.rows(batch))).map_err(panicked)??;
    if rows.len() != batch.len() {
        let message = format!("{} rows for {} sequences", rows.len(), batch.len());
        return Err(Error::Internal(message));
    }
    let count = batch.len() as u64;
    shared
        .sequences_computed
        .fetch_add(count, Ordering::Relaxed);
    Ok(rows)
}

/// Encodes and keeps what arrives until the teacher's thread ends.
fn pack(shared: &Shared, computed: &Receiver<Computed>, mut progress: Progress) {
    while let Ok(Computed { batch, rows }) = computed.recv() {
        let panicked = |_| Error::Internal("packing panicked; see the log".into());
        let entries = shared.plan.entries();
        let done = rows.iter().filter_map(|(index, _)| entries.get(*index));
        let (count, tokens) = done.fold((0, 0), |(count, tokens), entry| {
            (count + 1, tokens + u64::from(entry.tokens))
        });
        let kept = catch_unwind(AssertUnwindSafe(|| keep(shared, rows)))
            .map_err(panicked)
            .flatten();
        if kept.is_ok() {
            progress.advance(count, tokens);
        }
        finish(shared, batch, kept);
    }
    if let Err(error) = shared.store.flush() {
        tracing::error!("{error}");
    }
}

fn keep(shared: &Shared, rows: Vec<(usize, Rows)>) -> Result<()> {
    for (index, rows) in rows {
        let index = index as u64;
        if !shared.store.contains(index) {
            let frame = encode(&shared.plan, index, shared.store.shard_of(index), rows)?;
            shared.store.put(index, &frame)?;
            let bytes = frame.len() as u64;
            shared.work_done.bytes.fetch_add(bytes, Ordering::Relaxed);
            shared.sequences_done.fetch_add(1, Ordering::Release);
        }
    }
    Ok(())
}

fn finish(shared: &Shared, batch: u64, result: Result<()>) {
    let failure = result.err().map(|error| {
        tracing::error!("batch {batch}: {error}");
        Arc::new(error)
    });
    shared.state().demand.finish(batch, failure);
    shared.changed();
    shared.work.notify_all();
}
