//! Provides scoring of sequences that a trainer brings, a batch at a time between the plan's own.

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
    pub sequences: Vec<OwnedTokens>,
    pub done: Vec<Rows>,
    pub reply: oneshot::Sender<Result<Vec<Rows>>>,
}

impl ScoreJob {
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

impl Production {
    /// Runs the teacher on `sequences`; dropping the future stops the work within one batch.
    ///
    /// # Errors
    /// `Busy` above `SCORE_JOBS_MAX`, `DeviceHeld` while a trainer has the device, `ShuttingDown`, or what the teacher says.
    pub async fn score(&self, sequences: Vec<OwnedTokens>) -> Result<Vec<Rows>> {
        let (reply, answer) = oneshot::channel();
        {
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
            state.scores.retain(|job| !job.reply.is_closed());
            if state.scores.len() >= SCORE_JOBS_MAX {
                return Err(Error::Busy {
                    what: "ScoreTokens requests",
                    limit: SCORE_JOBS_MAX,
                });
            }
            state.scores.push_back(ScoreJob {
                sequences,
                done: Vec::new(),
                reply,
            });
        }
        self.shared.work.notify_all();
        answer.await.map_err(|_| Error::ShuttingDown)?
    }
}
