//! Provides what a GGUF file says about its tokenizer, as plain data.

use std::path::Path;

use serde_json::json;

use super::header::Header;
use super::value::{Metadata, Value};
use crate::Result;

/// llama.cpp's types of tokens that are matched before the text is split.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
/// Padding rows of the embedding, which no text reaches.
const UNUSED: u64 = 5;

/// How Qwen2 splits text, from its published tokenizer: contractions, words, single digits, punctuation, white space.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A byte-level BPE tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GgufTokenizer {
    /// Which text is split how: `qwen2`, `smollm`, ...
    pub pre_tokenizer: String,
    /// Tokens by id, in byte-level letters.
    pub tokens: Vec<String>,
    /// Ids of rows that stand for no token.
    pub unused: Vec<u32>,
    /// Ids of control tokens.
    pub special: Vec<u32>,
    /// Ids of tokens that are matched whole but are text.
    pub added: Vec<u32>,
    /// Merges in order of their rank, `left right`.
    pub merges: Vec<String>,
    /// Begin of text.
    pub bos_id: Option<u32>,
    /// End of text.
    pub eos_id: Option<u32>,
    /// Padding.
    pub pad_id: Option<u32>,
    /// What stands for text that cannot be represented.
    pub unk_id: Option<u32>,
    /// Whether every text begins with `bos_id`.
    pub add_bos: bool,
    /// Jinja template for conversations.
    pub chat_template: Option<String>,
}

impl GgufTokenizer {
    /// `tokenizer.json` as the tokenizers library reads it; `None` where it is not known how this `pre_tokenizer` splits text.
    pub fn tokenizer_json(&self) -> Option<serde_json::Value> {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let sequence =
            |parts: [serde_json::Value; 2]| json!({"type": "Sequence", "pretokenizers": parts});
        let (normalizer, pre_tokenizer) = match self.pre_tokenizer.as_str() {
            "qwen2" => {
                let split = json!({"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": false});
                (json!({"type": "NFC"}), sequence([split, byte_level(false)]))
            }
            "smollm" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                (
                    serde_json::Value::Null,
                    sequence([digits, byte_level(true)]),
                )
            }
            "gpt-2" | "default" => (serde_json::Value::Null, byte_level(true)),
            _ => return None,
        };
        let vocab: serde_json::Map<String, serde_json::Value> = self
            .tokens
            .iter()
            .zip(0_u32..)
            .filter(|(_, id)| self.unused.binary_search(id).is_err())
            .map(|(token, id)| (token.clone(), id.into()))
            .collect();
        let text = |id: u32| self.tokens.get(id as usize);
        let added = |ids: &[u32], special: bool| -> Vec<serde_json::Value> {
            let known = ids.iter().filter_map(|&id| Some((id, text(id)?)));
            known
                .map(|(id, content)| {
                    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special})
                })
                .collect()
        };
        let mut added_tokens = [added(&self.special, true), added(&self.added, false)].concat();
        added_tokens.sort_by_key(|token| token["id"].as_u64());
        let bos = self.bos_id.filter(|_| self.add_bos);
        let post_processor = match bos.and_then(|id| Some((id, text(id)?))) {
            Some((id, token)) => json!({
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
            }),
            None => byte_level(false),
        };
        Some(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added_tokens,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": post_processor,
            "decoder": byte_level(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": self.merges,
            },
        }))
    }

    /// `tokenizer_config.json`: special tokens and the chat template.
    pub fn tokenizer_config_json(&self) -> serde_json::Value {
        let text = |id: Option<u32>| id.and_then(|id| self.tokens.get(id as usize));
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": text(self.bos_id),
            "eos_token": text(self.eos_id),
            "pad_token": text(self.pad_id),
            "unk_token": text(self.unk_id),
            "chat_template": self.chat_template,
            "add_bos_token": self.add_bos,
        })
    }
}

pub(super) fn read(header: &Header, path: &Path) -> Result<GgufTokenizer> {
    let metadata = Metadata {
        values: &header.metadata,
        path,
    };
    let key = "tokenizer.ggml.model";
    let model = metadata.text(key)?;
    if model != "gpt2" {
        let problem = format!(
            "is `{model}`; this build rebuilds `gpt2` (byte-level BPE): name the directory of the model's tokenizer.json with --tokenizer"
        );
        return Err(metadata.fault(key, problem));
    }
    let tokens = metadata.texts("tokenizer.ggml.tokens")?;
    let key = "tokenizer.ggml.token_type";
    let types = metadata.list(key)?;
    if types.len() != tokens.len() {
        let (types, tokens) = (types.len(), tokens.len());
        let problem = format!("has {types} entries for {tokens} tokens; download the file again");
        return Err(metadata.fault(key, problem));
    }
    let rows = header.embedding_rows();
    if rows.is_some_and(|rows| rows < tokens.len() as u64) {
        let problem = format!(
            "has {} tokens, more than rows in token_embd.weight; name the directory of the model's tokenizer.json with --tokenizer",
            tokens.len()
        );
        return Err(metadata.fault("tokenizer.ggml.tokens", problem));
    }
    let of_type = |wanted: u64| -> Vec<u32> {
        let typed = types.iter().zip(0_u32..);
        typed
            .filter(|(kind, _)| kind.unsigned() == Some(wanted))
            .map(|(_, id)| id)
            .collect()
    };
    let id = |key: &str| {
        let found = metadata.get(key).and_then(Value::unsigned);
        found.and_then(|id| u32::try_from(id).ok())
    };
    let add_bos = metadata.get("tokenizer.ggml.add_bos_token");
    let template = metadata.get("tokenizer.chat_template");
    Ok(GgufTokenizer {
        pre_tokenizer: metadata.text("tokenizer.ggml.pre")?.to_owned(),
        special: of_type(CONTROL),
        added: of_type(USER_DEFINED),
        unused: of_type(UNUSED),
        merges: metadata.texts("tokenizer.ggml.merges")?,
        bos_id: id("tokenizer.ggml.bos_token_id"),
        eos_id: id("tokenizer.ggml.eos_token_id"),
        pad_id: id("tokenizer.ggml.padding_token_id"),
        unk_id: id("tokenizer.ggml.unknown_token_id"),
        add_bos: add_bos.and_then(Value::bool).unwrap_or(false),
        chat_template: template.and_then(Value::text).map(str::to_owned),
        tokens,
    })
}
