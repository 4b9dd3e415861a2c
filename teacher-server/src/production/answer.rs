//! Provides answers on the teacher's thread: one at a time, and on the CPU in turns with the plan's batches and scores.

use std::{
    cell::Cell,
    collections::VecDeque,
    sync::mpsc::SyncSender,
    time::{Duration, Instant},
};

use super::{
    Forward, Production, Shared, State,
    threads::{Computed, Work, compute_batch, next_batch_or_score, score},
};
use crate::{Error, Result, answers::AnswerJob};

/// Prompts that wait at a time; how many of them may be one connection's is said in `connections`.
pub const ANSWER_JOBS_MAX: usize = 32;
/// Time that an answer has before a batch or scores have their turn.
const ANSWER_TURN: Duration = Duration::from_millis(250);

/// Answers that wait.
#[derive(Default)]
pub(super) struct Answers {
    waiting: VecDeque<AnswerJob>,
    /// Whether the teacher's last work was an answer: the next one is of another kind, where there is some.
    had_last: bool,
}

impl Answers {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Takes all of them.
    pub fn drain(&mut self) -> VecDeque<AnswerJob> {
        std::mem::take(&mut self.waiting)
    }
}

impl Production {
    /// Has the teacher write an answer; who waits for it hears of it by the job's pieces. Where the device is lent there are none, and
    /// this is not to be called.
    ///
    /// # Errors
    /// `Busy` above `ANSWER_JOBS_MAX`, `ShuttingDown`.
    pub fn answer(&self, job: AnswerJob) -> Result<()> {
        let mut state = self.shared.state();
        if state.closing {
            return Err(Error::ShuttingDown);
        }
        let waiting = &mut state.answers.waiting;
        // Those whose client went away make room first.
        waiting.retain(|job| !job.is_abandoned());
        if waiting.len() >= ANSWER_JOBS_MAX {
            return Err(Error::Busy {
                what: "prompts",
                limit: ANSWER_JOBS_MAX,
            });
        }
        waiting.push_back(job);
        drop(state);
        self.shared.work.notify_all();
        Ok(())
    }
}

/// The teacher's next work where nothing is lent: an answer after something else and the other way round, where there are both.
pub(super) fn next_work(shared: &Shared, state: &mut State) -> Option<Work> {
    state.answers.waiting.retain(|job| !job.is_abandoned());
    let others_come = state.answers.had_last || state.answers.waiting.is_empty();
    let other = others_come
        .then(|| next_batch_or_score(shared, state))
        .flatten();
    let answer = || Some(Work::Answer(Box::new(state.answers.waiting.pop_front()?)));
    let work = other.or_else(answer)?;
    state.answers.had_last = matches!(work, Work::Answer(_));
    Some(work)
}

/// Writes an answer. What it says depends on nothing that is computed meanwhile, and the other way round.
pub(super) fn write(
    shared: &Shared,
    teacher: &dyn Forward,
    job: &AnswerJob,
    packing: &SyncSender<Computed>,
) {
    let decoder = teacher.decoder();
    // On a card an answer has the memory of a batch, so none is computed beside it.
    let shares = decoder.is_some_and(|decoder| decoder.device().is_cpu());
    let turn = Cell::new(Instant::now());
    let goes_on = || {
        let mut state = shared.state();
        if state.closing {
            return false;
        }
        if shares && turn.get().elapsed() >= ANSWER_TURN {
            let other = next_batch_or_score(shared, &mut state);
            drop(state);
            match other {
                Some(Work::Batch(batch)) => compute_batch(shared, teacher, batch, packing),
                Some(Work::Score(job)) => score(shared, teacher, job),
                _ => {}
            }
            turn.set(Instant::now());
        }
        true
    };
    job.write(decoder, &goes_on);
}
