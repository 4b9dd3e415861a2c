//! Provides the exact bytes that every token stands for, so that two tokenizers can be compared by what they write.

use std::{collections::HashMap, sync::LazyLock};

use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

use super::digest::{flatten, json};
use crate::{Result, limits::TOKEN_GROWTH_MAX};

/// What every id of a tokenizer stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vocabulary {
    /// Index = id; `None` where an id has no token.
    pub tokens: Vec<Option<Token>>,
    /// The token that ends a completion.
    pub eos_id: Option<u32>,
}

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its bytes in a text; of a special token those of its content.
    pub bytes: Vec<u8>,
    /// Whether it is a control token, which no other tokenizer spells in ordinary tokens.
    pub special: bool,
}

impl Vocabulary {
    /// Reads all tokens of `tokenizer`, whose ids are below `size`.
    ///
    /// A space that the tokenizer puts before a text (Llama) belongs to its first token as to any other; spaces between
    /// words that a tokenizer drops (WordPiece, words) belong to none.
    pub(super) fn read(tokenizer: &Tokenizer, size: u32, eos_id: Option<u32>) -> Self {
        let spelling = Spelling::read(tokenizer);
        let added = tokenizer.get_added_tokens_decoder();
        let token = |id: u32| match added.get(&id) {
            Some(added) => Some(Token {
                bytes: added.content.clone().into_bytes(),
                special: added.special,
            }),
            None => Some(Token {
                bytes: spelling.bytes(&tokenizer.id_to_token(id)?),
                special: false,
            }),
        };
        Self {
            tokens: (0..size).map(token).collect(),
            eos_id,
        }
    }

    /// The token behind an id.
    pub fn get(&self, id: u32) -> Option<&Token> {
        self.tokens.get(id as usize)?.as_ref()
    }

    /// All ids with a token.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Token)> {
        (0u32..)
            .zip(&self.tokens)
            .filter_map(|(id, token)| Some((id, token.as_ref()?)))
    }
}

/// Checks that no token becomes absurdly long when its replacements are written back.
pub(super) fn check(tokenizer: &Tokenizer) -> Result<(), String> {
    let growth = Spelling::read(tokenizer).growth();
    if growth > TOKEN_GROWTH_MAX {
        return Err(format!(
            "its replacements make a token {growth} times longer, above {TOKEN_GROWTH_MAX}"
        ));
    }
    Ok(())
}

/// How a vocabulary writes bytes as text.
#[derive(Debug, Default, PartialEq, Eq)]
struct Spelling {
    /// Every character stands for one byte.
    byte_level: bool,
    /// `<0x0A>` stands for the byte 10.
    byte_fallback: bool,
    /// Texts that stand for other texts: U+2581 for a space.
    replacements: Vec<(String, String)>,
    /// Marks a token inside a word: `##`.
    prefix: Option<String>,
    /// Marks the last token of a word: `</w>`.
    suffix: Option<String>,
}

impl Spelling {
    /// The decoder says how tokens become text; where there is none, what the normaliser and the pre-tokenizer do to a
    /// text says the same the other way round.
    fn read(tokenizer: &Tokenizer) -> Self {
        let mut spelling = Self::of_model(tokenizer.get_model());
        // A part that cannot be written as JSON was never read from any.
        let parts = |part: Result<Value, String>, list| flatten(part.unwrap_or_default(), list);
        for part in objects(&parts(json(&tokenizer.get_decoder()), "decoders")) {
            spelling.add_decoder(part);
        }
        for part in objects(&parts(json(&tokenizer.get_normalizer()), "normalizers")) {
            spelling.add_encoder(part);
        }
        for part in objects(&parts(
            json(&tokenizer.get_pre_tokenizer()),
            "pretokenizers",
        )) {
            spelling.add_encoder(part);
        }
        spelling
    }

    fn of_model(model: &ModelWrapper) -> Self {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        match model {
            ModelWrapper::BPE(bpe) => Self {
                byte_fallback: bpe.byte_fallback,
                prefix: bpe.continuing_subword_prefix.as_deref().and_then(some),
                suffix: bpe.end_of_word_suffix.as_deref().and_then(some),
                ..Self::default()
            },
            ModelWrapper::WordPiece(words) => Self {
                prefix: some(&words.continuing_subword_prefix),
                ..Self::default()
            },
            ModelWrapper::Unigram(unigram) => Self {
                byte_fallback: unigram.byte_fallback(),
                ..Self::default()
            },
            ModelWrapper::WordLevel(_) => Self::default(),
        }
    }

    fn add_decoder(&mut self, part: &Value) {
        match kind(part) {
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Metaspace" => self.replace(text(part, "replacement"), Some(" ")),
            "Replace" => self.replace(
                part.pointer("/pattern/String").and_then(Value::as_str),
                text(part, "content"),
            ),
            _ => {}
        }
    }

    fn add_encoder(&mut self, part: &Value) {
        let pattern = part.pointer("/pattern/String").and_then(Value::as_str);
        match kind(part) {
            "ByteLevel" => self.byte_level = true,
            "Metaspace" => self.replace(text(part, "replacement"), Some(" ")),
            // Other replacements lose what was there; this one is how U+2581 gets into a text.
            "Replace" if pattern == Some(" ") => self.replace(text(part, "content"), pattern),
            _ => {}
        }
    }

    fn replace(&mut self, from: Option<&str>, to: Option<&str>) {
        if let (Some(from), Some(to)) = (from.filter(|from| !from.is_empty()), to) {
            let known = self.replacements.iter().any(|(known, _)| known == from);
            if !known {
                self.replacements.push((from.to_owned(), to.to_owned()));
            }
        }
    }

    /// The most that replacements, one after the other, make of one byte.
    fn growth(&self) -> usize {
        let factors = self.replacements.iter().map(|(from, to)| {
            let whole = to.len().div_ceil(from.len().max(1));
            whole.max(1)
        });
        factors.fold(1, usize::saturating_mul)
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        if let Some(byte) = fallback_byte(token).filter(|_| self.byte_fallback) {
            return vec![byte];
        }
        let mut token = token;
        if let Some(rest) = self.prefix.as_deref().and_then(|p| token.strip_prefix(p)) {
            token = rest;
        }
        if let Some(rest) = self.suffix.as_deref().and_then(|s| token.strip_suffix(s)) {
            token = rest;
        }
        if self.byte_level {
            let bytes: Option<Vec<u8>> = token.chars().map(|c| BYTES.get(&c).copied()).collect();
            // As the library does with a token that someone added to the vocabulary in plain text.
            return bytes.unwrap_or_else(|| token.as_bytes().to_vec());
        }
        let replaced = self
            .replacements
            .iter()
            .fold(token.to_owned(), |token, (from, to)| {
                token.replace(from, to)
            });
        replaced.into_bytes()
    }
}

/// The byte that each character of a byte-level vocabulary stands for: printable ones for themselves, the other bytes in
/// order for the characters from U+0100 on.
static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = (0x100u32..).filter_map(char::from_u32);
    (0..=u8::MAX)
        .filter_map(|byte| {
            if printable(byte) {
                Some((char::from(byte), byte))
            } else {
                Some((others.next()?, byte))
            }
        })
        .collect()
});

/// 10 for `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

fn objects(parts: &Value) -> impl Iterator<Item = &Value> {
    parts.as_array().into_iter().flatten()
}

fn kind(part: &Value) -> &str {
    text(part, "type").unwrap_or_default()
}

fn text<'a>(part: &'a Value, field: &str) -> Option<&'a str> {
    part.get(field).and_then(Value::as_str)
}
