//! Provides the reading of frames, whichever vocabulary the teacher has and whichever text the student reads.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use distill_proto::Frame;
use distill_text::TokenizerFiles;

use super::{Aligner, pair, rows};
use crate::{
    Error, Result,
    client::{ServerInfo, Teacher, Vocabularies, fetch_vocabulary},
    config::ShuffleTeacher,
    loss::{LossConfig, Targets},
    student::StudentFiles,
    train::Example,
};

/// Turns frames into examples.
pub struct FrameReader<'a> {
    pub(super) student: &'a TokenizerFiles,
    /// Where the teacher's ids are not the student's.
    aligner: Option<Box<Aligner<'a>>>,
    /// Tokens of the student's side of a pair; the rest is cut off.
    pub(super) pair_tokens_max: usize,
    /// Whether anybody was told of a cut.
    is_cut_told: AtomicBool,
    /// What an example is given of the one before it, whose frame's index and rows are here.
    shuffled: ShuffleTeacher,
    before: Mutex<Option<(u64, Targets)>>,
}

impl<'a> FrameReader<'a> {
    /// Fetches the teacher's vocabulary where it is needed, and says how much of it the student knows. Of a pair the
    /// student's side has `pair_tokens_max` tokens at most, and as many as the model has positions.
    ///
    /// # Errors
    /// A lost connection, or vocabularies that have nothing in common.
    pub async fn new(
        vocabularies: Vocabularies,
        teacher: &Teacher,
        info: &ServerInfo,
        student: &'a StudentFiles,
        pair_tokens_max: usize,
    ) -> Result<Self> {
        let positions_max = student.config.max_position_embeddings;
        let pair_tokens_max = pair_tokens_max.min(positions_max);
        if vocabularies == Vocabularies::Same {
            return Ok(Self::of(&student.tokenizer, None, pair_tokens_max));
        }
        let vocabulary = fetch_vocabulary(teacher, info).await?;
        let aligner = Aligner::new(&vocabulary, &student.tokenizer, positions_max);
        let (tokens, mapped) = aligner.map().counts();
        if mapped == 0 {
            return Err(Error::Mismatch {
                what: "vocabulary",
                teacher: format!("{tokens} tokens"),
                student: "none with the same bytes".to_owned(),
                remedy: "use a teacher and a student for the same languages, or train on text alone with pretrain",
            });
        }
        tracing::info!(
            "another tokenizer: {}; KL is taken where both have a boundary, similarities of logits are not available",
            aligner.map()
        );
        Ok(Self::of(&student.tokenizer, Some(aligner), pair_tokens_max))
    }

    pub(super) fn of(
        student: &'a TokenizerFiles,
        aligner: Option<Aligner<'a>>,
        pair_tokens_max: usize,
    ) -> Self {
        Self {
            student,
            aligner: aligner.map(Box::new),
            pair_tokens_max,
            is_cut_told: AtomicBool::new(false),
            shuffled: ShuffleTeacher::None,
            before: Mutex::default(),
        }
    }

    /// The same, but every example is given something of the one before it; the first is left out, which is said.
    #[must_use]
    pub fn shuffled(self, shuffled: ShuffleTeacher) -> Self {
        Self { shuffled, ..self }
    }

    /// The frame as the student sees it; `None` where nothing in it can be learned by this student.
    ///
    /// # Errors
    /// The student's tokenizer cannot represent the text.
    pub fn example(&self, frame: &Frame) -> Result<Option<Example>> {
        let Some(example) = self.read(frame)? else {
            return Ok(None);
        };
        if self.shuffled == ShuffleTeacher::None {
            return Ok(Some(example));
        }
        let own = (frame.index, example.targets.clone());
        let Some((_, rows)) = self.before().replace(own) else {
            tracing::info!(
                "the first sequence is left out: --shuffle-teacher gives every sequence what the teacher says of the one before it"
            );
            return Ok(None);
        };
        Ok(Some(match self.shuffled {
            ShuffleTeacher::States => example.with_states_of_another(rows.state),
            ShuffleTeacher::Rows | ShuffleTeacher::None => example.with_rows_of_another(rows),
        }))
    }

    fn before(&self) -> MutexGuard<'_, Option<(u64, Targets)>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Index of the frame that the next example is given something of.
    pub(crate) fn given_next(&self) -> Option<u64> {
        self.before().as_ref().map(|(index, _)| *index)
    }

    /// Goes on after this frame, where a run stopped.
    ///
    /// # Errors
    /// As [`example`](Self::example).
    pub(crate) fn go_on_after(&self, frame: &Frame) -> Result<()> {
        let example = self.read(frame)?;
        *self.before() = example.map(|example| (frame.index, example.targets));
        Ok(())
    }

    /// The frame with its own rows, whatever the run is given.
    ///
    /// # Errors
    /// As [`example`](Self::example).
    pub(crate) fn read(&self, frame: &Frame) -> Result<Option<Example>> {
        match (&frame.view, &self.aligner) {
            (Some(view), _) => pair::example(frame, view, self),
            (None, None) => Ok(Some(Example::from_frame(frame))),
            (None, Some(aligner)) => aligner.example(frame),
        }
    }

    /// Says once that a student's side did not fit.
    pub(super) fn tell_cut(&self, frame: &Frame) {
        if !self.is_cut_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the student's side of sequence {} has more than {} tokens: the end is cut off, and that of others as long; \
                 --student-seq-len takes more, for more memory",
                frame.index,
                self.pair_tokens_max
            );
        }
    }

    /// Whether a token of the teacher ends a turn or a text.
    pub(super) fn is_teacher_end(&self, id: u32) -> bool {
        match &self.aligner {
            Some(aligner) => aligner.is_teacher_special(id),
            None => self.student.is_special(id),
        }
    }

    /// The teacher's rows in the student's ids, and which of them are left. `ends` are the ids that end an answer on either
    /// side: the teacher's means the student's.
    pub(super) fn rows(&self, teacher: Targets, ends: Option<(u32, u32)>) -> (Targets, Vec<usize>) {
        let ends = ends.filter(|(ours, theirs)| self.aligner.is_some() || ours != theirs);
        if self.aligner.is_none() && ends.is_none() {
            let all = (0..teacher.rows()).collect();
            return (teacher, all);
        }
        let counterpart = |id: u32| match (ends, &self.aligner) {
            (Some((teacher, student)), _) if teacher == id => Some(student),
            (_, Some(aligner)) => aligner.map().student_id(id),
            (_, None) => Some(id),
        };
        rows::map(&teacher, self.student.size(), |_| true, counterpart)
    }
}

/// Refuses losses that need coordinates of the teacher's logits: over another vocabulary they mean nothing.
///
/// # Errors
/// `Config` with the settings to use.
pub fn check_loss(vocabularies: Vocabularies, loss: &LossConfig) -> Result<()> {
    if vocabularies == Vocabularies::Other && loss.needs_state() {
        return Err(Error::Config(
            "cost, similarity: the teacher has another vocabulary, so its logits have no inner product with the \
             student's; use --cost kl or --similarity bhattacharyya"
                .into(),
        ));
    }
    Ok(())
}
