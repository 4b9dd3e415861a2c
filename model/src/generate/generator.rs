//! Provides the continuation of many prompts: who waits for a slot, who has one, and what is written next.

use std::collections::{BTreeSet, VecDeque};

use candle_core::{DType, Tensor};
use distill_kernels::device;
use rayon::prelude::*;

use super::{Sampling, draw::uniform};
use crate::ops::{cpu, head::head_rows};
use crate::{Decoder, Error, KvCache, Piece, Result, TokenMatrix};

/// How prompts are continued.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sequences that are continued together at most.
    pub rows: usize,
    /// Tokens that a prompt and what follows it have at most.
    pub positions: usize,
    /// Ids that can be written: the head's rows from there on are padding.
    pub vocabulary: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Ids that end a sequence.
    pub ends: BTreeSet<u32>,
}

/// What is to be continued.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Tokens that may follow.
    pub max_new_tokens: usize,
    /// Of its random numbers. What follows is a function of this, the prompt and the model.
    pub seed: u64,
}

/// One token that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Which prompt it follows, in the order in which they came, from 0.
    pub prompt: usize,
    /// The token.
    pub id: u32,
    /// Why nothing follows it, where nothing does.
    pub finish: Option<Finish>,
}

/// Why a sequence goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Its last token is one that ends it.
    End,
    /// It has as many tokens as it may.
    Length,
}

/// Continues prompts with a model.
#[derive(Debug)]
pub struct Generator<'a> {
    decoder: &'a Decoder,
    /// The head's rows that can be written.
    head: TokenMatrix,
    options: Options,
    cache: KvCache,
    waiting: VecDeque<(usize, Prompt)>,
    /// By slot.
    running: Vec<Option<Running>>,
    submitted: usize,
}

/// A sequence that has a slot.
#[derive(Debug)]
struct Running {
    prompt: usize,
    seed: u64,
    /// The token that is not in the cache yet.
    last: u32,
    written: usize,
    limit: usize,
}

impl<'a> Generator<'a> {
    /// Allocates the cache for sequences of `decoder`.
    ///
    /// # Errors
    /// Options outside their meaning; more positions or ids than the model has; no room for the cache.
    pub fn new(decoder: &'a Decoder, options: Options) -> Result<Self> {
        options
            .sampling
            .validate()
            .map_err(|reason| Error::Input(reason.to_owned()))?;
        if options.rows == 0 || options.positions < 2 {
            return Err(Error::Input(format!(
                "{} sequences of {} tokens: there must be one sequence at least, with room for a token of the prompt and one \
                 behind it",
                options.rows, options.positions
            )));
        }
        Ok(Self {
            head: decoder.head_matrix().narrow(options.vocabulary)?,
            cache: decoder.new_cache(options.rows, options.positions)?,
            running: (0..options.rows).map(|_| None).collect(),
            waiting: VecDeque::new(),
            submitted: 0,
            decoder,
            options,
        })
    }

    /// Takes a prompt; its number, which what is written after it has.
    ///
    /// # Errors
    /// An empty prompt, or one that leaves no room for a token behind it.
    pub fn submit(&mut self, prompt: Prompt) -> Result<usize> {
        let (length, room) = (prompt.ids.len(), self.options.positions);
        if length == 0 || prompt.max_new_tokens == 0 {
            return Err(Error::Input(
                "a prompt without a token, or nothing to write behind it: there is nothing to do"
                    .into(),
            ));
        }
        if length >= room {
            return Err(Error::Input(format!(
                "the prompt has {length} tokens, and prompt and answer together may have {room}: shorten the prompt"
            )));
        }
        let number = self.submitted;
        self.submitted += 1;
        self.waiting.push_back((number, prompt));
        Ok(number)
    }

    /// Whether nothing waits and nothing is being continued.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.iter().all(Option::is_none)
    }

    /// Continues a prompt no further; its slot is free from now on.
    pub fn stop(&mut self, prompt: usize) {
        self.waiting.retain(|(waiting, _)| *waiting != prompt);
        for running in &mut self.running {
            if running.as_ref().is_some_and(|one| one.prompt == prompt) {
                *running = None;
            }
        }
    }

    /// One pass: the tokens of a prompt for which a slot is free, else one more token for everything that is being continued. What it
    /// wrote; nothing where there is nothing to do.
    ///
    /// # Errors
    /// A token outside the vocabulary; what the device says.
    pub fn step(&mut self) -> Result<Vec<Written>> {
        let free = self.running.iter().position(Option::is_none);
        let Some(slot) = free.filter(|_| !self.waiting.is_empty()) else {
            return self.go_on();
        };
        let Some((number, prompt)) = self.waiting.pop_front() else {
            return Ok(Vec::new());
        };
        self.enter(slot, number, &prompt)
    }

    fn enter(&mut self, slot: usize, number: usize, prompt: &Prompt) -> Result<Vec<Written>> {
        self.cache.truncate(slot, 0);
        let ids = &prompt.ids;
        let hidden = self
            .decoder
            .extend(&[Piece { slot, ids }], &mut self.cache)?;
        let last = hidden.narrow(0, ids.len() - 1, 1)?;
        let mut running = Running {
            prompt: number,
            seed: prompt.seed,
            last: 0,
            written: 0,
            limit: prompt
                .max_new_tokens
                .min(self.options.positions - ids.len()),
        };
        let chosen = self.choose(&last, &[uniform(running.seed, 0)])?;
        let written = chosen
            .into_iter()
            .map(|id| running.take(id, &self.options.ends))
            .collect::<Vec<_>>();
        if written.iter().all(|written| written.finish.is_none()) {
            self.running[slot] = Some(running);
        }
        Ok(written)
    }

    fn go_on(&mut self) -> Result<Vec<Written>> {
        let running = self.running.iter().enumerate();
        let running = running.filter_map(|(slot, one)| Some((slot, one.as_ref()?)));
        let pieces = running.clone().map(|(slot, one)| Piece {
            slot,
            ids: std::slice::from_ref(&one.last),
        });
        let pieces: Vec<Piece<'_>> = pieces.collect();
        if pieces.is_empty() {
            return Ok(Vec::new());
        }
        let random = running.map(|(_, one)| uniform(one.seed, one.written as u64));
        let random: Vec<f64> = random.collect();
        let hidden = self.decoder.extend(&pieces, &mut self.cache)?;
        let chosen = self.choose(&hidden, &random)?;
        let mut written = Vec::with_capacity(chosen.len());
        let taken = self.running.iter_mut().filter(|slot| slot.is_some());
        for (slot, id) in taken.zip(chosen) {
            written.extend(slot.as_mut().map(|one| one.take(id, &self.options.ends)));
            if written.last().is_some_and(|last| last.finish.is_some()) {
                *slot = None;
            }
        }
        Ok(written)
    }

    /// The next token after each row.
    ///
    /// # Shapes
    /// hidden [n, d], random: n of them
    fn choose(&self, hidden: &Tensor, random: &[f64]) -> Result<Vec<u32>> {
        let sampling = self.options.sampling;
        let logits = self.logits(hidden)?;
        if logits.device().is_cuda() {
            let vocabulary = self.options.vocabulary;
            return sampling.choose_on_card((&logits, vocabulary), random, device::COMPUTE);
        }
        let logits = logits.to_vec2::<f32>()?;
        let rows = logits.par_iter().zip(random);
        rows.map(|(logits, random)| sampling.choose(logits, *random))
            .collect()
    }

    /// The logits of each row, in f32. On the CPU none depends on the others; a card's rows may be longer than the vocabulary, and what
    /// is in them from there on means nothing.
    ///
    /// # Shapes
    /// hidden [n, d] -> [n, vocabulary or more]
    pub(super) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        if hidden.device().is_cpu() {
            return cpu::head_logits(&self.head, hidden);
        }
        match &self.head {
            TokenMatrix::Packed(head) => head.product(&hidden.to_dtype(DType::F32)?),
            TokenMatrix::Dense(head) => {
                Ok(head_rows(&hidden.contiguous()?, &head.tensor().detach())?)
            }
        }
    }
}

impl Running {
    fn take(&mut self, id: u32, ends: &BTreeSet<u32>) -> Written {
        self.last = id;
        self.written += 1;
        let finish = if ends.contains(&id) {
            Some(Finish::End)
        } else {
            (self.written == self.limit).then_some(Finish::Length)
        };
        Written {
            prompt: self.prompt,
            id,
            finish,
        }
    }
}
