//! Provides exact answers: the student writes its completion of every prompt, and the last line is compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use candle_core::{DType, Device, Tensor};
use distill_model::Decoder;
use distill_text::{Sequence, TokenizerFiles};
use serde::Serialize;
use serde_json::json;

use super::{
    decoding::{Chooser, Decoding},
    ends::end_ids,
};
use crate::{
    Error, Result, files::write_atomically, loss::HeadGeometry, shutdown::Shutdown,
    student::StudentFiles,
};

/// Prompts of equal length that are continued together.
const PROMPTS_A_BATCH: usize = 32;

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
}

/// Writes completions with a model.
pub struct Generator<'a> {
    decoder: &'a Decoder,
    /// Its head's effective rows.
    geometry: &'a HeadGeometry,
    /// Text to ids and back.
    tokenizer: &'a TokenizerFiles,
    /// Ids that end an answer.
    ends: BTreeSet<u32>,
    /// How tokens are chosen.
    decoding: Decoding,
    shutdown: &'a Shutdown,
}

/// The answers to prompts.
pub struct Answers {
    /// In the order of the prompts.
    pub given: Vec<Answer>,
    /// Whether every prompt has one.
    pub complete: bool,
}

impl<'a> Generator<'a> {
    /// Of the student in `files`.
    ///
    /// # Errors
    /// A configuration that does not say at which tokens an answer ends.
    pub fn new(
        decoder: &'a Decoder,
        geometry: &'a HeadGeometry,
        files: &'a StudentFiles,
        decoding: Decoding,
        shutdown: &'a Shutdown,
    ) -> Result<Self> {
        Ok(Self {
            decoder,
            geometry,
            tokenizer: &files.tokenizer,
            ends: end_ids(&files.dir, &files.tokenizer)?,
            decoding,
            shutdown,
        })
    }

    /// Answers every sequence that is a prompt with a completion, in their order, up to a shutdown; others are passed over.
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
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, sequence) in sequences.iter().enumerate() {
            if let Some(prompt) = prompt_length(sequence) {
                by_length.entry(prompt).or_default().push(i);
            }
        }
        let prompts: usize = by_length.values().map(Vec::len).sum();
        let mut answers = BTreeMap::new();
        'all: for (length, indices) in by_length {
            for batch in indices.chunks(PROMPTS_A_BATCH) {
                let prompts: Vec<&[u32]> = batch
                    .iter()
                    .map(|&i| &sequences[i].token_ids[..length])
                    .collect();
                let choosers = batch.iter().map(|&i| self.decoding.chooser(i)).collect();
                let Some(completions) = self.complete(&prompts, choosers)? else {
                    break 'all;
                };
                for (&i, generated) in batch.iter().zip(completions) {
                    let answer = self.answer(&sequences[i].token_ids, length, &generated)?;
                    progress(&answer);
                    answers.insert(i, answer);
                }
            }
        }
        Ok(Answers {
            complete: answers.len() == prompts,
            given: answers.into_values().collect(),
        })
    }

    /// A token after the prompt, then after that, up to a token that ends it, which is left out. `None` after a shutdown.
    ///
    /// # Shapes
    /// `prompts`: B of T ids each, `choosers`: one for each.
    ///
    /// # Errors
    /// A tensor error; prompts of different lengths.
    fn complete(
        &self,
        prompts: &[&[u32]],
        mut choosers: Vec<Chooser>,
    ) -> Result<Option<Vec<Vec<u32>>>> {
        let length = prompts.first().map_or(0, |prompt| prompt.len());
        let room = self.decoder.config().max_position_embeddings;
        let steps = self
            .decoding
            .max_new_tokens
            .min(room.saturating_sub(length));
        let mut cache = self.decoder.new_cache();
        let mut ids = Tensor::from_vec(prompts.concat(), (prompts.len(), length), &Device::Cpu)?;
        let mut written = vec![Vec::new(); prompts.len()];
        let mut done = vec![false; prompts.len()];
        for _ in 0..steps {
            if self.shutdown.is_requested() {
                return Ok(None);
            }
            let hidden = self.decoder.extend(&ids, &mut cache)?;
            let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.squeeze(1)?;
            let logits = self
                .geometry
                .logits(&last.contiguous()?.to_dtype(DType::F32)?)?;
            let mut next = logits.argmax(1)?.to_vec1::<u32>()?;
            for (row, (id, chooser)) in next.iter_mut().zip(&mut choosers).enumerate() {
                *id = chooser.next(&logits.get(row)?, *id)?;
            }
            for ((id, written), done) in next.iter().zip(&mut written).zip(&mut done) {
                *done |= self.ends.contains(id);
                if !*done {
                    written.push(*id);
                }
            }
            if done.iter().all(|done| *done) {
                break;
            }
            ids = Tensor::new(next, &Device::Cpu)?.unsqueeze(1)?;
        }
        Ok(Some(written))
    }

    fn answer(&self, ids: &[u32], prompt: usize, generated: &[u32]) -> Result<Answer> {
        let text = |ids: &[u32]| {
            let decoded = self.tokenizer.tokenizer().decode(ids, true);
            decoded.map_err(|e| Error::Config(format!("ids cannot be turned into text: {e}")))
        };
        let (question, reference) = ids.split_at(prompt);
        let (reference, generated) = (text(reference)?, text(generated)?);
        Ok(Answer {
            prompt: text(question)?,
            correct: last_line(&reference) == last_line(&generated),
            reference,
            generated,
        })
    }
}

/// Tokens before the first target, where all from there on are targets and something comes before.
fn prompt_length(sequence: &Sequence) -> Option<usize> {
    let first = sequence.target_mask.iter().position(|&target| target)?;
    let suffix = sequence
        .target_mask
        .iter()
        .skip(first)
        .all(|&target| target);
    // Running text has its first target at 1: one token is no prompt.
    (suffix && first > 1).then_some(first)
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

    fn sequence(mask: &[bool]) -> Sequence {
        Sequence {
            id: 0,
            content_id: 0,
            text: String::new(),
            token_ids: vec![1; mask.len()],
            byte_offsets: Vec::new(),
            target_mask: mask.to_vec(),
            view: None,
        }
    }

    #[test]
    fn only_a_prompt_with_a_completion_is_asked() {
        assert_eq!(
            prompt_length(&sequence(&[false, false, true, true])),
            Some(2)
        );
        assert_eq!(prompt_length(&sequence(&[false, true, true])), None);
        assert_eq!(prompt_length(&sequence(&[false, false, true, false])), None);
        assert_eq!(prompt_length(&sequence(&[false, false])), None);
    }

    #[test]
    fn the_last_line_is_the_answer() {
        assert_eq!(last_line("1+1=2\nAnswer: 2\n"), "Answer: 2");
        assert_eq!(last_line(""), "");
    }
}
