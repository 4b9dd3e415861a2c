//! Provides a tokenizer as the metadata of a GGUF file, and that tokenizer from a `tokenizer.json`: the way back of `tokenizer`.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;

use super::pre_tokenizer::{self, NAMES};
use super::tokenizer::{
    ADD_BOS, BOS_ID, BYTE_LEVEL_BPE, CHAT_TEMPLATE, CONTROL, EOS_ID, GgufTokenizer, MERGES, MODEL,
    PADDING_ID, PRE, TOKEN_TYPE, TOKENS, UNKNOWN_ID, UNUSED, USER_DEFINED,
};
use super::write::unsupported;
use crate::{Error, Result};

/// llama.cpp's type of every other token.
const NORMAL: u8 = 1;
/// Ends of tokens that are for control whatever their tokenizer says of them; llama.cpp's converter has the same list.
const CONTROL_LIKE: [(&str, &str); 3] = [("<|", "|>"), ("<｜", "｜>"), ("<unused", ">")];
/// Such tokens without common ends.
const CONTROL_NAMES: [&str; 4] = ["<pad>", "<mask>", "<2mass>", "[@BOS@]"];
/// What sentencepiece writes for a space.
const SPACE: char = '\u{2581}';
/// What byte-level BPE writes for one.
const BYTE_LEVEL_SPACE: &str = "\u{120}";

impl GgufTokenizer {
    /// The tokenizer of `tokenizer`, a whole `tokenizer.json`, for an embedding of so many rows; rows that are no token's are
    /// unused. Special ids and the chat template are not in there and stay unset.
    ///
    /// # Errors
    /// Another kind of tokenizer, or a way of splitting text that llama.cpp has no name for that is known here.
    pub fn of_json(tokenizer: &Json, rows: usize) -> Result<Self> {
        let model = &tokenizer["model"];
        let (Some("BPE"), Some(vocab)) = (model["type"].as_str(), model["vocab"].as_object())
        else {
            let kind = model["type"].as_str().unwrap_or("no type");
            return Err(unsupported(format!("a tokenizer of type {kind}")));
        };
        if model["byte_fallback"] == true {
            let what = "a sentencepiece tokenizer (BPE with byte_fallback)";
            return Err(unsupported(what.to_owned()));
        }
        let pre_tokenizer = pre_tokenizer::name_of(tokenizer).ok_or_else(|| {
            unsupported(format!(
                "how this tokenizer splits text (normalizer {}, pre_tokenizer {}; known are those that llama.cpp calls {})",
                tokenizer["normalizer"],
                tokenizer["pre_tokenizer"],
                NAMES.join(", ")
            ))
        })?;
        let mut read = Self {
            pre_tokenizer: pre_tokenizer.to_owned(),
            merges: merges(&model["merges"]),
            ..Self::default()
        };
        let mut tokens: HashMap<usize, &str> = HashMap::new();
        for (token, id) in vocab {
            tokens.insert(index(id, rows)?, token);
        }
        let added = tokenizer["added_tokens"].as_array();
        let mut types: HashMap<usize, (u8, String)> = HashMap::new();
        for token in added.into_iter().flatten() {
            let id = index(&token["id"], rows)?;
            let content = token["content"].as_str().unwrap_or_default();
            let kind = if token["special"] == true || is_like_control(content) {
                (CONTROL, content.to_owned())
            } else {
                (USER_DEFINED, content.replace(SPACE, " "))
            };
            types.insert(id, kind);
        }
        for (row, id) in (0..rows).zip(0_u32..) {
            let token = match (types.remove(&row), tokens.get(&row)) {
                (Some((CONTROL, content)), _) => {
                    read.special.push(id);
                    content
                }
                (Some((_, content)), _) => {
                    read.added.push(id);
                    content
                }
                (None, Some(token)) => (*token).to_owned(),
                (None, None) => {
                    read.unused.push(id);
                    format!("[PAD{row}]")
                }
            };
            read.tokens.push(token);
        }
        Ok(read)
    }

    /// The keys and values that say all of it.
    pub(super) fn entries(&self) -> Vec<(&'static str, Value)> {
        let texts =
            |texts: &[String]| Value::Array(texts.iter().cloned().map(Value::String).collect());
        let kinds = (0_u32..).take(self.tokens.len()).map(|id| {
            let is_in = |ids: &[u32]| ids.binary_search(&id).is_ok();
            let kind = match (
                is_in(&self.special),
                is_in(&self.added),
                is_in(&self.unused),
            ) {
                (true, ..) => CONTROL,
                (_, true, _) => USER_DEFINED,
                (.., true) => UNUSED,
                _ => NORMAL,
            };
            Value::I32(kind.into())
        });
        let mut entries = vec![
            (MODEL, Value::String(BYTE_LEVEL_BPE.to_owned())),
            (PRE, Value::String(self.pre_tokenizer.clone())),
            (TOKENS, texts(&self.tokens)),
            (TOKEN_TYPE, Value::Array(kinds.collect())),
            (MERGES, texts(&self.merges)),
        ];
        let ids = [
            (BOS_ID, self.bos_id),
            (EOS_ID, self.eos_id),
            (UNKNOWN_ID, self.unk_id),
            (PADDING_ID, self.pad_id),
        ];
        entries.extend(
            ids.into_iter()
                .filter_map(|(key, id)| Some((key, Value::U32(id?)))),
        );
        entries.push((ADD_BOS, Value::Bool(self.add_bos)));
        if let Some(template) = &self.chat_template {
            entries.push((CHAT_TEMPLATE, Value::String(template.clone())));
        }
        entries
    }
}

/// An id as the row of the embedding that it has to be.
fn index(id: &Json, rows: usize) -> Result<usize> {
    let row = id.as_u64().and_then(|id| usize::try_from(id).ok());
    row.filter(|row| *row < rows).ok_or_else(|| {
        Error::Input(format!(
            "the tokenizer has a token with id {id}, but the embedding has {rows} rows; tokenizer and model do not belong together"
        ))
    })
}

fn is_like_control(content: &str) -> bool {
    let between =
        |(begin, end): &(&str, &str)| content.starts_with(begin) && content.ends_with(end);
    CONTROL_NAMES.contains(&content) || CONTROL_LIKE.iter().any(between)
}

/// Merges as `left right`, from pairs or from texts that are so already.
fn merges(merges: &Json) -> Vec<String> {
    let part = |part: &Json| {
        part.as_str()
            .unwrap_or_default()
            .replace(' ', BYTE_LEVEL_SPACE)
    };
    let merges = merges.as_array().into_iter().flatten();
    merges
        .map(|merge| match merge {
            Json::Array(parts) => parts.iter().map(part).collect::<Vec<_>>().join(" "),
            merge => merge.as_str().unwrap_or_default().to_owned(),
        })
        .collect()
}
