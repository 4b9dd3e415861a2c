//! Provides the teacher's rows for held-out sequences, asked from a thread that is not async.

use std::{
    collections::HashMap,
    fmt::Display,
    io::{Read, Write},
    time::Instant,
};

use distill_proto::{Rows, v1::ScoreTokensResponse};
use distill_text::Sequence;
use prost::Message;
use tokio::runtime::Handle;

use crate::{
    Error, Result,
    client::{SequenceToScore, ServerInfo, Teacher, Vocabularies, scored},
    files,
    loss::LossConfig,
    shutdown::Shutdown,
    student::StudentFiles,
};

/// Sequences in one question to the teacher, at most.
const SEQUENCES_A_CALL: usize = 4;
/// Tokens in one question to the teacher, at most; it refuses more than 65536.
const TOKENS_A_CALL: usize = 1 << 15;

/// How many of `sequences` fit into one question.
pub(crate) fn sequences_a_call(sequences: &[Sequence]) -> usize {
    let longest = sequences.iter().map(|one| one.token_ids.len()).max();
    (TOKENS_A_CALL / longest.unwrap_or(1).max(1)).clamp(1, SEQUENCES_A_CALL)
}

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
    /// What it has said already, by the sequence's id: it says the same every time.
    pub kept: HashMap<u64, Rows>,
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

    /// Asks about `sequences` now, for when the teacher cannot be asked, and writes down what it answers. After a shutdown some
    /// are lacking.
    ///
    /// # Errors
    /// As `Teacher::ask_to_score`; answers that cannot be written.
    pub fn keep(&mut self, sequences: &[Sequence], answers: &mut dyn Write) -> Result<()> {
        let start = Instant::now();
        for part in sequences.chunks(sequences_a_call(sequences)) {
            let Some(answer) = self.ask(part)? else {
                return Ok(());
            };
            self.keep_answer(part, &answer)?;
            write_answer(&answer, answers)?;
        }
        tracing::info!(
            "the teacher has scored {} held-out sequences for all evaluations in {:.1} s",
            sequences.len(),
            start.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Takes what [`Self::keep`] wrote down of `sequences`. False where it is that the teacher does not score.
    ///
    /// # Errors
    /// Answers that cannot be read, or to other questions.
    pub fn recall(&mut self, sequences: &[Sequence], answers: &mut dyn Read) -> Result<bool> {
        for part in sequences.chunks(sequences_a_call(sequences)) {
            let answer = read_answer(answers)?;
            if answer.blocks.is_empty() {
                return Ok(false);
            }
            self.keep_answer(part, &answer)?;
        }
        Ok(true)
    }

    fn keep_answer(&mut self, part: &[Sequence], answer: &ScoreTokensResponse) -> Result<()> {
        let rows = scored(&self.info, &questions(part), answer)?;
        let ids = part.iter().map(|sequence| sequence.id);
        // Evaluations look at the distribution only, and a state is many times as large.
        let without_state = rows.into_iter().map(|rows| Rows {
            state: None,
            ..rows
        });
        self.kept.extend(ids.zip(without_state));
        Ok(())
    }

    /// The rows of `sequences`; a restart of the teacher is waited for. `None` after a shutdown.
    ///
    /// # Errors
    /// As `Teacher::ask_to_score` and [`scored`].
    pub fn score(&self, sequences: &[Sequence]) -> Result<Option<Vec<Rows>>> {
        let kept = sequences.iter().map(|sequence| self.kept.get(&sequence.id));
        if let Some(kept) = kept.collect::<Option<Vec<_>>>() {
            return Ok(Some(kept.into_iter().cloned().collect()));
        }
        let answer = self.ask(sequences)?;
        let rows = answer.map(|answer| scored(&self.info, &questions(sequences), &answer));
        rows.transpose()
    }

    fn ask(&self, sequences: &[Sequence]) -> Result<Option<ScoreTokensResponse>> {
        let asked = questions(sequences);
        let (teacher, info, shutdown) = (&self.teacher, &self.info, &self.shutdown);
        let answer = teacher.ask_to_score(info, &asked, self.attempts, shutdown);
        self.runtime.block_on(async {
            tokio::select! {
                answer = answer => answer.map(Some),
                () = shutdown.requested() => Ok(None),
            }
        })
    }
}

fn questions(sequences: &[Sequence]) -> Vec<SequenceToScore<'_>> {
    let sequences = sequences.iter();
    sequences
        .map(|sequence| SequenceToScore {
            token_ids: &sequence.token_ids,
            target_mask: &sequence.target_mask,
        })
        .collect()
}

/// Writes one answer down. One without any sequence stands for a teacher that does not score.
///
/// # Errors
/// The file system refuses.
pub(crate) fn write_answer(answer: &ScoreTokensResponse, to: &mut dyn Write) -> Result<()> {
    files::write_piece(to, &answer.encode_to_vec()).map_err(|e| not_kept(&e))
}

fn read_answer(from: &mut dyn Read) -> Result<ScoreTokensResponse> {
    let piece = files::read_piece(from).map_err(|e| not_kept(&e))?;
    ScoreTokensResponse::decode(&*piece.unwrap_or_default()).map_err(|e| not_kept(&e))
}

fn not_kept(reason: &dyn Display) -> Error {
    Error::Stream(format!(
        "what the teacher said of held-out text cannot be kept: {reason}"
    ))
}
