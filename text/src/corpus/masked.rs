//! Provides sequences of which only parts are targets: completions and the assistant's turns.

use std::ops::Range;

use super::windows::cut_before;
use crate::{Encoded, Result, TokenizerFiles, chat::Conversation, tokenizer::offset};

/// A sequence before it is counted and named.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Draft {
    pub text: String,
    pub ids: Vec<u32>,
    pub ranges: Vec<(u32, u32)>,
    pub mask: Vec<bool>,
}

impl Draft {
    /// Encodes `text` once and marks the tokens that have a byte in one of `spans`, which are in order.
    ///
    /// A token across the border of a span has bytes that must be generated, so it is a target.
    fn masked(tokenizer: &TokenizerFiles, text: String, spans: &[Range<usize>]) -> Result<Self> {
        let Encoded { ids, ranges } = tokenizer.encode(&text)?;
        let mut spans = spans.iter().peekable();
        let mask = ranges.iter().map(|&(start, end)| {
            let (start, end) = (start as usize, end as usize);
            while spans.next_if(|span| span.end <= start).is_some() {}
            start < end && spans.peek().is_some_and(|span| span.start < end)
        });
        let mask = mask.collect();
        Ok(Self {
            text,
            ids,
            ranges,
            mask,
        })
    }

    /// All of a text is a target.
    pub fn text(tokenizer: &TokenizerFiles, text: String) -> Result<Self> {
        let whole = 0..text.len();
        let mut draft = Self::masked(tokenizer, text, &[whole])?;
        draft.put_before(tokenizer.prefix_ids());
        Ok(draft)
    }

    /// A question whose answer is not there: nothing is a target, and nothing ends.
    pub fn prompt(tokenizer: &TokenizerFiles, prompt: String) -> Result<Self> {
        let mut draft = Self::masked(tokenizer, prompt, &[])?;
        draft.put_before(tokenizer.prefix_ids());
        Ok(draft)
    }

    /// The completion and the end-of-sequence token after it are targets.
    pub fn completion(
        tokenizer: &TokenizerFiles,
        prompt: String,
        completion: &str,
    ) -> Result<Self> {
        let start = prompt.len();
        let text = prompt + completion;
        let span = start..text.len();
        let mut draft = Self::masked(tokenizer, text, &[span])?;
        draft.put_before(tokenizer.prefix_ids());
        if let Some(eos) = tokenizer.eos_id() {
            let end = offset(draft.text.len())?;
            draft.ids.push(eos);
            draft.ranges.push((end, end));
            draft.mask.push(true);
        }
        Ok(draft)
    }

    /// A begin-of-text is the template's business.
    pub fn conversation(tokenizer: &TokenizerFiles, conversation: Conversation) -> Result<Self> {
        Self::masked(tokenizer, conversation.text, &conversation.targets)
    }

    /// Puts tokens without text in front, unless they are there already.
    pub fn put_before(&mut self, prefix: &[u32]) {
        if self.ids.starts_with(prefix) {
            return;
        }
        self.ids.splice(0..0, prefix.iter().copied());
        self.ranges.splice(0..0, prefix.iter().map(|_| (0, 0)));
        self.mask.splice(0..0, prefix.iter().map(|_| false));
    }

    /// Cuts the end off so that at most `limit` tokens remain; whether anything was cut.
    pub fn truncate(&mut self, limit: usize) -> bool {
        if self.ids.len() <= limit {
            return false;
        }
        let cut = cut_before(&self.text, &self.ranges, 0, limit).unwrap_or_default();
        self.ids.truncate(cut.token);
        self.ranges.truncate(cut.token);
        self.mask.truncate(cut.token);
        self.text.truncate(cut.byte as usize);
        true
    }
}
