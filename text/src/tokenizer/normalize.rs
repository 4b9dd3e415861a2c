//! Provides the normaliser of a tokenizer with a bound on what it may make of a text.
//!
//! A rule that writes `aa` for `a`, sixty times over, makes 2^60 bytes of one. Every rule is therefore measured before it
//! is applied, where its author decides how much it writes.

use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokenizers::{
    NormalizedString, Normalizer, NormalizerWrapper, normalizers::Precompiled, utils::SysRegex,
};

use super::{digest::json, guard::guarded};
use crate::{
    Result,
    limits::{NORMALIZED_GROWTH_MAX, NORMALIZED_SLACK_BYTES},
};

/// Characters of a text that a table of replacements is tried on at a time.
const TRIED_CHARACTERS: usize = 32;

/// The rules of a normaliser, in order.
pub(super) struct Rules(Vec<Rule>);

/// One rule, with what it can add to a text.
struct Rule {
    part: NormalizerWrapper,
    growth: Growth,
}

/// How much longer a rule makes a text.
enum Growth {
    /// By what Unicode says, a small factor at most.
    Unicode,
    /// By so many bytes, once.
    Once(usize),
    /// By so many bytes wherever the text occurs.
    Text(String, usize),
    /// By so many bytes at every match.
    Regex(Box<SysRegex>, usize),
    /// By what a table of replacements holds.
    Table(Box<Precompiled>),
}

impl Rules {
    /// Takes a normaliser apart; sequences do what their parts do.
    pub fn new(normalizer: Option<&NormalizerWrapper>) -> Result<Self, String> {
        let mut rules = Vec::new();
        if let Some(normalizer) = normalizer {
            collect(normalizer, &mut rules)?;
        }
        Ok(Self(rules))
    }

    /// The normaliser for one text of so many bytes; `None` where there is no rule.
    pub fn bounded(&self, text_bytes: usize) -> Option<Bounded<'_>> {
        let bytes_max = text_bytes * NORMALIZED_GROWTH_MAX + NORMALIZED_SLACK_BYTES;
        (!self.0.is_empty()).then_some(Bounded {
            rules: &self.0,
            text_bytes,
            state: Mutex::new(State {
                left: bytes_max,
                failure: None,
            }),
        })
    }

    /// Tries the rules on a text, such as an added token that the library is about to normalise.
    pub fn check(&self, text: &str) -> Result<(), String> {
        let Some(bounded) = self.bounded(text.len()) else {
            return Ok(());
        };
        guarded(|| {
            let mut normalized = NormalizedString::from(text);
            bounded
                .normalize(&mut normalized)
                .map_err(|e| e.to_string())?;
            bounded.finish()
        })
    }
}

fn collect(part: &NormalizerWrapper, rules: &mut Vec<Rule>) -> Result<(), String> {
    let growth = match part {
        NormalizerWrapper::Sequence(sequence) => {
            let mut parts = sequence.as_ref().iter();
            return parts.try_for_each(|part| collect(part, rules));
        }
        NormalizerWrapper::Prepend(prepend) => Growth::Once(prepend.prepend.len()),
        NormalizerWrapper::Precompiled(table) => Growth::Table(Box::new(table.clone())),
        NormalizerWrapper::Replace(replace) => {
            let pattern = json(replace)?;
            growth_of(pattern.get("pattern"), replace.content.len())?
        }
        _ => Growth::Unicode,
    };
    let part = part.clone();
    rules.push(Rule { part, growth });
    Ok(())
}

fn growth_of(pattern: Option<&Value>, bytes: usize) -> Result<Growth, String> {
    let text = |name: &str| pattern?.get(name)?.as_str();
    if let Some(text) = text("String") {
        let longer = bytes.saturating_sub(text.len());
        return Ok(Growth::Text(text.to_owned(), longer));
    }
    let regex = text("Regex").ok_or("a Replace without a pattern")?;
    let regex = SysRegex::new(regex).map_err(|e| e.to_string())?;
    Ok(Growth::Regex(Box::new(regex), bytes))
}

impl Rule {
    /// Bytes that there may be after the rule.
    fn grown(&self, text: &str) -> usize {
        let added = match &self.growth {
            Growth::Text(_, 0) | Growth::Regex(_, 0) | Growth::Unicode => 0,
            Growth::Once(bytes) => *bytes,
            Growth::Text(pattern, bytes) => text
                .matches(pattern.as_str())
                .count()
                .saturating_mul(*bytes),
            Growth::Regex(pattern, bytes) => pattern.find_iter(text).count().saturating_mul(*bytes),
            Growth::Table(table) => return table_length(table, text),
        };
        text.len().saturating_add(added)
    }
}

/// Length of what a table makes of a text, which it is given in parts, as nothing bounds what it writes for one character.
fn table_length(table: &Precompiled, text: &str) -> usize {
    let (mut rest, mut length) = (text, 0);
    while !rest.is_empty() {
        let end = rest.char_indices().nth(TRIED_CHARACTERS);
        let (part, after) = rest.split_at(end.map_or(rest.len(), |(at, _)| at));
        length += table.normalize_string(part).len();
        rest = after;
    }
    length
}

/// The rules with what is left of a text's bound.
///
/// The library ignores the error of a normaliser, so the first one is kept until [`Bounded::finish`] asks for it.
pub(super) struct Bounded<'a> {
    rules: &'a [Rule],
    text_bytes: usize,
    state: Mutex<State>,
}

struct State {
    /// Bytes that may still be written.
    left: usize,
    failure: Option<String>,
}

impl Bounded<'_> {
    /// Applies all rules and returns what is left of `left` bytes.
    fn apply(&self, text: &mut NormalizedString, left: usize) -> Result<usize, String> {
        for rule in self.rules {
            if rule.grown(text.get()) > left {
                return Err(self.too_long());
            }
            rule.part.normalize(text).map_err(|e| e.to_string())?;
        }
        let left = left.checked_sub(text.get().len());
        left.ok_or_else(|| self.too_long())
    }

    fn too_long(&self) -> String {
        format!(
            "the normalizer makes a text of {} bytes more than {NORMALIZED_GROWTH_MAX} times longer",
            self.text_bytes
        )
    }

    /// What went wrong, where something did.
    pub fn finish(self) -> Result<(), String> {
        let state = self.state.into_inner();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.failure.map_or(Ok(()), Err)
    }
}

impl Normalizer for Bounded<'_> {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failure.is_none() {
            match self.apply(text, state.left) {
                Ok(left) => state.left = left,
                Err(reason) => state.failure = Some(reason),
            }
        }
        Ok(())
    }
}
