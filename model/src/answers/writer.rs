//! Provides answers as text: prompts in ids go in, and text comes out as soon as it is certain.

use std::collections::BTreeSet;

use distill_text::{TextStream, TokenizerFiles};
use serde::{Deserialize, Serialize};

use super::Decoding;
use crate::{Decoder, Error, Generator, Options, Prompt};

/// Prompts that are continued together at most.
const PROMPTS_A_BATCH: usize = 32;

/// Why an answer goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model has ended it.
    End,
    /// It is as long as it may be.
    Length,
    /// A stop string has come, which is no part of it.
    Stop,
    /// Somebody asked to stop.
    Interrupted,
}

/// What was written after a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The text, without special tokens.
    pub text: String,
    /// Why it goes no further.
    pub finish: Finish,
    /// Tokens that were written, its end included.
    pub tokens: usize,
}

/// A prompt in ids.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What the model reads.
    pub ids: Vec<u32>,
    /// Of its draws.
    pub seed: u64,
}

/// What is heard of answers while they are written.
#[derive(Clone, Copy, Debug)]
pub enum Heard<'t> {
    /// More text of the answer to the prompt with this number.
    Text(usize, &'t str),
    /// The whole of it.
    Whole(usize, &'t Written),
}

/// Writes answers with a model.
pub struct Writer<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a TokenizerFiles,
    decoding: Decoding,
    ends: BTreeSet<u32>,
    stops: Vec<String>,
    is_over: Box<dyn Fn() -> bool + 'a>,
}

impl<'a> Writer<'a> {
    /// Of a model with its tokenizer. Answers end at an id of `ends`, which [`end_ids`](super::end_ids) finds, before a string of
    /// `stops`, and where `is_over` says so, which is asked before every token.
    pub fn new(
        (decoder, tokenizer): (&'a Decoder, &'a TokenizerFiles),
        mut ends: BTreeSet<u32>,
        decoding: Decoding,
        stops: &[String],
        is_over: impl Fn() -> bool + 'a,
    ) -> Self {
        // Texts are without special tokens, so that such a stop would never be found there.
        let known = stops
            .iter()
            .filter_map(|stop| tokenizer.tokenizer().token_to_id(stop));
        ends.extend(known.filter(|&id| tokenizer.is_special(id)));
        Self {
            decoder,
            tokenizer,
            decoding,
            ends,
            stops: stops.to_vec(),
            is_over: Box::new(is_over),
        }
    }

    /// Answers every prompt, in their order. `each` hears of the answers as they grow, and says whether to go on; after it does not, or
    /// where all is over, the others are `Interrupted`. A prompt that leaves no room has an empty answer.
    ///
    /// # Errors
    /// A tensor error; ids that the tokenizer cannot turn into text; what `each` says.
    pub fn write<E: From<Error> + From<distill_text::Error>>(
        &self,
        prompts: &[Asked],
        each: &mut dyn FnMut(Heard<'_>) -> Result<bool, E>,
    ) -> Result<Vec<Written>, E> {
        let max_new_tokens = self.decoding.max_new_tokens;
        let room = self.decoder.config().max_position_embeddings;
        let mut growing: Vec<Growing<'_>> = prompts.iter().map(|_| self.begin()).collect();
        let mut fitting = Vec::with_capacity(prompts.len());
        for (number, prompt) in prompts.iter().enumerate() {
            if prompt.ids.len() < room {
                fitting.push(number);
                continue;
            }
            growing[number].finish = Some(Finish::Length);
            growing[number].tell(number, each)?;
        }
        let lengths = fitting.iter().map(|&number| prompts[number].ids.len());
        let longest = lengths.max().unwrap_or(1);
        let mut generator = Generator::new(
            self.decoder,
            Options {
                rows: fitting.len().clamp(1, PROMPTS_A_BATCH),
                positions: longest.saturating_add(max_new_tokens).min(room),
                vocabulary: self.tokenizer.size() as usize,
                sampling: self.decoding.sampling,
                ends: self.ends.clone(),
            },
        )?;
        for &number in &fitting {
            generator.submit(Prompt {
                ids: prompts[number].ids.clone(),
                max_new_tokens,
                seed: prompts[number].seed,
            })?;
        }
        'all: while !generator.is_idle() && !(self.is_over)() {
            for token in generator.step()? {
                let number = fitting[token.prompt];
                let one = &mut growing[number];
                one.take(token)?;
                if one.finish.is_some() {
                    generator.stop(token.prompt);
                }
                if !one.tell(number, each)? {
                    break 'all;
                }
            }
        }
        let ended = growing
            .iter()
            .map(|one| one.end(one.finish.unwrap_or(Finish::Interrupted)));
        Ok(ended.collect())
    }

    fn begin(&self) -> Growing<'_> {
        Growing {
            stream: TextStream::new(self.tokenizer, &self.stops),
            new: String::new(),
            tokens: 0,
            finish: None,
        }
    }
}

/// An answer that is being written.
struct Growing<'a> {
    stream: TextStream<'a>,
    /// Text that nobody has heard of.
    new: String,
    tokens: usize,
    finish: Option<Finish>,
}

impl Growing<'_> {
    fn take(&mut self, token: crate::Written) -> distill_text::Result<()> {
        self.tokens += 1;
        self.new.clear();
        if token.finish != Some(crate::Finish::End) {
            self.new += self.stream.push(token.id)?;
        }
        self.finish = match token.finish {
            _ if self.stream.is_stopped() => Some(Finish::Stop),
            Some(crate::Finish::End) => Some(Finish::End),
            Some(crate::Finish::Length) => Some(Finish::Length),
            None => None,
        };
        if self.finish.is_some() {
            self.new += self.stream.finish();
        }
        Ok(())
    }

    fn tell<E>(
        &self,
        number: usize,
        each: &mut dyn FnMut(Heard<'_>) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let mut goes_on = self.new.is_empty() || each(Heard::Text(number, &self.new))?;
        if let Some(finish) = self.finish {
            goes_on &= each(Heard::Whole(number, &self.end(finish)))?;
        }
        Ok(goes_on)
    }

    fn end(&self, finish: Finish) -> Written {
        Written {
            text: self.stream.text().to_owned(),
            finish,
            tokens: self.tokens,
        }
    }
}
