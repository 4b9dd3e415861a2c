//! Provides the teacher's rows for held-out sequences, asked from a thread that is not async.

use distill_proto::Rows;
use distill_text::Sequence;
use tokio::runtime::Handle;

use crate::{
    Error, Result,
    client::{SequenceToScore, ServerInfo, Teacher, Vocabularies},
    loss::LossConfig,
    shutdown::Shutdown,
    student::StudentFiles,
};

/// A teacher that scores what this side brings.
pub(crate) struct Scorer {
    /// Of the network.
    pub runtime: Handle,
    /// Whom to ask.
    pub teacher: Teacher,
    /// Its handshake.
    pub info: ServerInfo,
    /// Lost connections in a row before giving up.
    pub attempts: u32,
    /// Ends the waiting.
    pub shutdown: Shutdown,
}

impl Scorer {
    /// Refuses students and losses whose distance to this teacher cannot be measured.
    ///
    /// # Errors
    /// Another vocabulary, or rows that do not feed the loss.
    pub fn check(&self, files: &StudentFiles, loss: &LossConfig) -> Result<()> {
        let info = &self.info;
        if info.check_student(&files.tokenizer, files.config.vocab_size)? == Vocabularies::Other {
            return Err(Error::Mismatch {
                what: "vocabulary fingerprint",
                teacher: info.vocabulary.to_string(),
                student: files.tokenizer.vocabulary_fingerprint().to_string(),
                remedy: "eval compares students with the teacher's vocabulary only; leave --teacher out for cross-entropy alone",
            });
        }
        let state = info.state.map(|(kind, _)| kind);
        Ok(loss.check_teacher(info.estimator, &info.temperatures, state)?)
    }

    /// The rows of `sequences`; a restart of the teacher is waited for. `None` after a shutdown.
    ///
    /// # Errors
    /// As `Teacher::score`.
    pub fn score(&self, sequences: &[Sequence]) -> Result<Option<Vec<Rows>>> {
        let asked: Vec<_> = sequences
            .iter()
            .map(|sequence| SequenceToScore {
                token_ids: &sequence.token_ids,
                target_mask: &sequence.target_mask,
            })
            .collect();
        let score = self
            .teacher
            .score(&self.info, &asked, self.attempts, &self.shutdown);
        self.runtime.block_on(async {
            tokio::select! {
                rows = score => rows.map(Some),
                () = self.shutdown.requested() => Ok(None),
            }
        })
    }
}
