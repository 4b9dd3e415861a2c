//! Provides the reading of frames, whichever vocabulary the teacher has.

use distill_proto::Frame;

use super::Aligner;
use crate::{
    Error, Result,
    client::{ServerInfo, Teacher, Vocabularies, fetch_vocabulary},
    loss::LossConfig,
    student::StudentFiles,
    train::Example,
};

/// Turns frames into examples.
pub enum FrameReader<'a> {
    /// The teacher's ids are the student's.
    Same,
    /// They are mapped, and the text is encoded again.
    Other(Box<Aligner<'a>>),
}

impl<'a> FrameReader<'a> {
    /// Fetches the teacher's vocabulary where it is needed, and says how much of it the student knows.
    ///
    /// # Errors
    /// A lost connection, or vocabularies that have nothing in common.
    pub async fn new(
        vocabularies: Vocabularies,
        teacher: &Teacher,
        info: &ServerInfo,
        student: &'a StudentFiles,
    ) -> Result<Self> {
        if vocabularies == Vocabularies::Same {
            return Ok(Self::Same);
        }
        let vocabulary = fetch_vocabulary(teacher, info).await?;
        let positions_max = student.config.max_position_embeddings;
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
        Ok(Self::Other(Box::new(aligner)))
    }

    /// The frame as the student sees it; `None` where nothing in it can be learned by this student.
    ///
    /// # Errors
    /// The student's tokenizer cannot represent the text.
    pub fn example(&self, frame: &Frame) -> Result<Option<Example>> {
        match self {
            Self::Same => Ok(Some(Example::from_frame(frame))),
            Self::Other(aligner) => aligner.example(frame),
        }
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
