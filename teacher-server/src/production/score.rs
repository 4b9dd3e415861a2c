//! Provides scoring of sequences that trainers bring, a batch at a time between the plan's own, from one client after another.

use std::collections::VecDeque;

use distill_proto::{Fingerprint, Rows};
use tokio::sync::oneshot;

use super::{Production, SCORE_JOBS_MAX, Tokens};
use crate::{Error, Result, lease::Lease};

/// A sequence that a client brought.
#[derive(Debug, Clone)]
pub struct OwnedTokens {
    /// T ids, checked against the effective vocabulary.
    pub token_ids: Vec<u32>,
    /// T flags.
    pub target_mask: Vec<bool>,
}

impl OwnedTokens {
    /// A digest of the tokens: the same text is drawn the same, and sequences of different requests are unrelated.
    fn draw_id(&self) -> u64 {
        let bytes: Vec<u8> = self
            .token_ids
            .iter()
            .flat_map(|id| id.to_le_bytes())
            .collect();
        let Fingerprint([a, b, c, d, e, f, g, h, ..]) = Fingerprint::of(&bytes);
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// A request under way.
pub(super) struct ScoreJob {
    pub client: u64,
    /// Of all jobs, in the order of their coming.
    pub number: u64,
    pub sequences: Vec<OwnedTokens>,
    pub done: Vec<Rows>,
    pub reply: oneshot::Sender<Result<Vec<Rows>>>,
}

impl ScoreJob {
    /// One that has not begun, and where its answer comes.
    pub fn new(
        client: u64,
        number: u64,
        sequences: Vec<OwnedTokens>,
    ) -> (Self, oneshot::Receiver<Result<Vec<Rows>>>) {
        let (reply, answer) = oneshot::channel();
        let job = Self {
            client,
            number,
            sequences,
            done: Vec::new(),
            reply,
        };
        (job, answer)
    }

    /// The sequences of the next batch.
    pub fn batch(&self, batch_size: usize) -> Vec<Tokens<'_>> {
        let rest = self.sequences.iter().enumerate().skip(self.done.len());
        rest.take(batch_size)
            .map(|(index, sequence)| Tokens {
                id: index as u64,
                draw_id: sequence.draw_id(),
                token_ids: &sequence.token_ids,
                target_mask: &sequence.target_mask,
            })
            .collect()
    }
}

/// Jobs that wait: a lane for each client, which get a batch one after another.
#[derive(Default)]
pub(super) struct Scores {
    lanes: VecDeque<VecDeque<ScoreJob>>,
    next: u64,
}

impl Scores {
    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// The number that the next job gets.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    pub fn add(&mut self, job: ScoreJob) {
        self.next += 1;
        match self.lane_of(job.client) {
            Some(lane) => lane.push_back(job),
            None => self.lanes.push_back(VecDeque::from([job])),
        }
    }

    /// Takes the job of the client that was served longest ago, of those before `number`.
    pub fn pop_before(&mut self, number: u64) -> Option<ScoreJob> {
        let is_before =
            |lane: &VecDeque<ScoreJob>| lane.front().is_some_and(|job| job.number < number);
        let at = self.lanes.iter().position(is_before)?;
        let mut lane = self.lanes.remove(at)?;
        let job = lane.pop_front();
        if !lane.is_empty() {
            self.lanes.push_back(lane);
        }
        job
    }

    /// Puts a job that is not done back: it is the next of its client, and its client the last.
    pub fn put_back(&mut self, job: ScoreJob) {
        match self.lane_of(job.client) {
            Some(lane) => lane.push_front(job),
            None => self.lanes.push_back(VecDeque::from([job])),
        }
    }

    /// Forgets jobs that nobody waits for any more.
    pub fn forget_abandoned(&mut self) {
        for lane in &mut self.lanes {
            lane.retain(|job| !job.reply.is_closed());
        }
        self.lanes.retain(|lane| !lane.is_empty());
    }

    /// Takes all of them.
    pub fn drain(&mut self) -> impl Iterator<Item = ScoreJob> + use<> {
        std::mem::take(&mut self.lanes).into_iter().flatten()
    }

    fn lane_of(&mut self, client: u64) -> Option<&mut VecDeque<ScoreJob>> {
        let is_its =
            |lane: &&mut VecDeque<ScoreJob>| lane.front().is_some_and(|job| job.client == client);
        self.lanes.iter_mut().find(is_its)
    }
}

impl Production {
    /// Runs the teacher on the `sequences` of a client; dropping the future stops the work within one batch.
    ///
    /// # Errors
    /// `Busy` above `SCORE_JOBS_MAX`, `DeviceHeld` while a trainer has the device, `ShuttingDown`, or what the teacher says.
    pub async fn score(&self, client: u64, sequences: Vec<OwnedTokens>) -> Result<Vec<Rows>> {
        let answer = {
            let mut state = self.shared.state();
            if state.closing {
                return Err(Error::ShuttingDown);
            }
            if let Some(holder) = state.lease.as_ref().and_then(Lease::holder) {
                let holder = holder.to_owned();
                return Err(Error::DeviceHeld { holder });
            }
            state.asked();
            // Jobs whose client went away make room first.
            state.scores.forget_abandoned();
            if state.scores.len() >= SCORE_JOBS_MAX {
                return Err(Error::Busy {
                    what: "ScoreTokens requests",
                    limit: SCORE_JOBS_MAX,
                });
            }
            let number = state.scores.next_number();
            let (job, answer) = ScoreJob::new(client, number, sequences);
            state.scores.add(job);
            answer
        };
        self.shared.work.notify_all();
        answer.await.map_err(|_| Error::ShuttingDown)?
    }
}
