//! Provides exact answers: the student writes its answer to every prompt, and the last line is compared.

use std::{collections::BTreeMap, ops::Range, path::Path};

use distill_model::Decoder;
use distill_text::{Sequence, TokenizerFiles};
use serde::Serialize;
use serde_json::json;

use crate::{
    Error, Result,
    files::write_atomically,
    generate::{Asked, Decoding, Finish, Heard, Writer},
    shutdown::Shutdown,
    student::StudentFiles,
};

/// One answered prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// What was asked.
    pub prompt: String,
    /// The corpus's completion.
    pub reference: String,
    /// The student's.
    pub generated: String,
    /// Whether the last lines agree.
    pub correct: bool,
    /// What the base writes without the adapter, where both are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<OfBase>,
    /// Which sequence it is of.
    #[serde(skip)]
    pub index: usize,
}

/// The base's answer to the same prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OfBase {
    /// The base's completion.
    pub generated: String,
    /// Whether its last line agrees.
    pub correct: bool,
}

/// Answers the prompts of sequences with a model.
pub struct Answerer<'a> {
    writer: Writer<'a>,
    tokenizer: &'a TokenizerFiles,
    seed: u64,
}

/// The answers to prompts.
pub struct Answers {
    /// In the order of the prompts.
    pub given: Vec<Answer>,
    /// Whether every prompt has one.
    pub complete: bool,
}

impl Answers {
    /// Puts what the base answered beside each.
    pub(super) fn compare(&mut self, base: Self) {
        let base = base.given.into_iter().map(|one| (one.index, one));
        let mut base: BTreeMap<usize, Answer> = base.collect();
        for answer in &mut self.given {
            answer.base = base.remove(&answer.index).map(|one| OfBase {
                generated: one.generated,
                correct: one.correct,
            });
        }
    }
}

impl<'a> Answerer<'a> {
    /// Of the student in `files`.
    ///
    /// # Errors
    /// A configuration that does not say at which tokens an answer ends.
    pub fn new(
        decoder: &'a Decoder,
        files: &'a StudentFiles,
        decoding: Decoding,
        shutdown: &'a Shutdown,
    ) -> Result<Self> {
        Ok(Self {
            writer: Writer::new(decoder, files, decoding, &[], shutdown)?,
            tokenizer: &files.tokenizer,
            seed: decoding.seed,
        })
    }

    /// Answers every sequence that has a prompt with an answer, in their order, up to a shutdown; others are passed over.
    ///
    /// `progress` hears of every answer.
    ///
    /// # Errors
    /// A tensor error, or ids that the tokenizer cannot turn into text.
    pub fn answers(
        &self,
        sequences: &[Sequence],
        progress: &mut dyn FnMut(&Answer),
    ) -> Result<Answers> {
        let answered = sequences
            .iter()
            .enumerate()
            .filter_map(|(index, sequence)| {
                Some((index, answered(&sequence.target_mask, self.tokenizer)?))
            });
        let (mut asked, mut places) = (Vec::new(), Vec::new());
        for (index, answer) in answered {
            asked.push(Asked {
                ids: sequences[index].token_ids[..answer.start].to_vec(),
                // Every prompt draws for itself.
                seed: self.seed.wrapping_add(index as u64),
            });
            places.push((index, answer));
        }
        let mut given = BTreeMap::new();
        let mut hear = |heard: Heard<'_>| {
            if let Heard::Whole(number, written) = heard {
                let (index, answer) = &places[number];
                let ids = &sequences[*index].token_ids;
                let answer = Answer {
                    index: *index,
                    ..self.judge(ids, answer.clone(), &written.text)?
                };
                progress(&answer);
                given.insert(*index, answer);
            }
            Ok(true)
        };
        let written = self.writer.write(&asked, &mut hear)?;
        Ok(Answers {
            complete: written.iter().all(|one| one.finish != Finish::Interrupted),
            given: given.into_values().collect(),
        })
    }

    fn judge(&self, ids: &[u32], answer: Range<usize>, generated: &str) -> Result<Answer> {
        let reference = text_of(&ids[answer.clone()], self.tokenizer)?;
        Ok(Answer {
            prompt: text_of(&ids[..answer.start], self.tokenizer)?,
            correct: last_line(&reference) == last_line(generated),
            reference,
            generated: generated.to_owned(),
            base: None,
            index: 0,
        })
    }
}

/// Ids as people read them.
pub(crate) fn text_of(ids: &[u32], tokenizer: &TokenizerFiles) -> Result<String> {
    let decoded = tokenizer.tokenizer().decode(ids, true);
    decoded.map_err(|e| Error::Config(format!("ids cannot be turned into text: {e}")))
}

/// The tokens of a sequence's last answer, what comes before them being its prompt: the completion, or the assistant's last turn.
/// `None` where nothing was asked. `mask` says which tokens are targets.
pub(crate) fn answered(mask: &[bool], tokenizer: &TokenizerFiles) -> Option<Range<usize>> {
    let end = mask.iter().rposition(|&target| target)? + 1;
    let before = mask[..end].iter().rposition(|&target| !target)?;
    // Running text has a token before its first target that is no prompt, or those that the tokenizer puts before every text.
    let none = tokenizer.prefix_ids().len().max(1);
    (before + 1 > none).then_some(before + 1..end)
}

/// Refuses data in which nothing is asked, before any work.
///
/// # Errors
/// That, with what would be right.
pub(crate) fn check_prompts(sequences: &[Sequence], tokenizer: &TokenizerFiles) -> Result<()> {
    let masks = sequences.iter().map(|one| &one.target_mask);
    let mut answers = masks.map(|mask| answered(mask, tokenizer));
    if answers.any(|answer| answer.is_some()) {
        return Ok(());
    }
    Err(Error::Config(
        "exact_match: there is no prompt with an answer in the data; use JSON Lines with `prompt` and `completion`, or with `messages`"
            .into(),
    ))
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().next_back().unwrap_or("").trim()
}

/// Writes one JSON object a line; where prompts are without an answer, the last line is `{"complete":false}`.
pub(super) fn write_answers(path: &Path, answers: &Answers) -> Result<()> {
    let mut text = String::new();
    for answer in &answers.given {
        let line = serde_json::to_string(answer).map_err(|e| Error::file(path, e))?;
        text += &line;
        text.push('\n');
    }
    if !answers.complete {
        text += &format!("{}\n", incomplete());
    }
    write_atomically(path, text.as_bytes())
}

/// Stands at the end of a list that somebody stopped.
pub(super) fn incomplete() -> serde_json::Value {
    json!({"complete": false})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_models::write_student;

    fn sequence(mask: &[u8]) -> Sequence {
        Sequence {
            id: 0,
            content_id: 0,
            text: String::new(),
            token_ids: vec![1; mask.len()],
            byte_offsets: Vec::new(),
            target_mask: mask.iter().map(|&target| target == 1).collect(),
            view: None,
        }
    }

    #[test]
    fn the_last_answer_is_asked_for_and_running_text_is_none() {
        let dir = tempfile::tempdir().unwrap();
        write_student(dir.path(), distill_model::testing::TinyModel::qwen2(), 40);
        let tokenizer = TokenizerFiles::open(dir.path()).unwrap();
        for (mask, expected) in [
            (&[0, 0, 1, 1][..], Some(2..4)),
            // Two turns, and what a template writes behind the last.
            (&[0, 0, 1, 1, 0, 0, 1, 1, 1, 0], Some(6..9)),
            (&[0, 1, 1], None),
            (&[0, 0], None),
            (&[0, 0, 1], Some(2..3)),
        ] {
            let sequence = sequence(mask);
            let found = answered(&sequence.target_mask, &tokenizer);
            assert_eq!(found, expected, "{mask:?}");
            let checked = check_prompts(&[sequence], &tokenizer);
            assert_eq!(checked.is_ok(), expected.is_some());
        }
    }

    #[test]
    fn the_last_line_is_the_answer() {
        assert_eq!(last_line("1+1=2\nAnswer: 2\n"), "Answer: 2");
        assert_eq!(last_line(""), "");
    }
}
