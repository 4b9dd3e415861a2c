//! Provides what a GGUF file says about its tokenizer, as plain data.

use std::path::Path;

use serde_json::json;

use super::header::Header;
use super::pre_tokenizer::{adds_bos_unsaid, byte_level, splitting};
use super::value::{Metadata, Value};
use crate::Result;

/// llama.cpp's types of tokens that are matched before the text is split.
pub(super) const CONTROL: u8 = 3;
pub(super) const USER_DEFINED: u8 = 4;
/// Padding rows of the embedding, which no text reaches.
pub(super) const UNUSED: u8 = 5;

/// Where a file says what, and the values that name a byte-level BPE tokenizer; files are read and written by these.
pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const BYTE_LEVEL_BPE: &str = "gpt2";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const BOS_ID: &str = "tokenizer.ggml.bos_token_id";
pub(super) const EOS_ID: &str = "tokenizer.ggml.eos_token_id";
pub(super) const UNKNOWN_ID: &str = "tokenizer.ggml.unknown_token_id";
pub(super) const PADDING_ID: &str = "tokenizer.ggml.padding_token_id";
pub(super) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
pub(super) const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

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
        let splitting = splitting(&self.pre_tokenizer)?;
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
            "normalizer": splitting.normalizer,
            "pre_tokenizer": splitting.pre_tokenizer,
            "post_processor": post_processor,
            "decoder": byte_level(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": splitting.ignore_merges,
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
    let model = metadata.text(MODEL)?;
    if model != BYTE_LEVEL_BPE {
        let problem = format!(
            "is `{model}`; this build rebuilds `{BYTE_LEVEL_BPE}` (byte-level BPE): name the directory of the model's tokenizer.json with --tokenizer"
        );
        return Err(metadata.fault(MODEL, problem));
    }
    let tokens = metadata.texts(TOKENS)?;
    let types = metadata.list(TOKEN_TYPE)?;
    if types.len() != tokens.len() {
        let (types, tokens) = (types.len(), tokens.len());
        let problem = format!("has {types} entries for {tokens} tokens; download the file again");
        return Err(metadata.fault(TOKEN_TYPE, problem));
    }
    let rows = header.embedding_rows();
    if rows.is_some_and(|rows| rows < tokens.len() as u64) {
        let problem = format!(
            "has {} tokens, more than rows in token_embd.weight; name the directory of the model's tokenizer.json with --tokenizer",
            tokens.len()
        );
        return Err(metadata.fault(TOKENS, problem));
    }
    let of_type = |wanted: u8| -> Vec<u32> {
        let typed = types.iter().zip(0_u32..);
        typed
            .filter(|(kind, _)| kind.unsigned() == Some(wanted.into()))
            .map(|(_, id)| id)
            .collect()
    };
    let id = |key: &str| {
        let found = metadata.get(key).and_then(Value::unsigned);
        found.and_then(|id| u32::try_from(id).ok())
    };
    let add_bos = metadata.get(ADD_BOS);
    let template = metadata.get(CHAT_TEMPLATE);
    let pre_tokenizer = metadata.text(PRE)?;
    Ok(GgufTokenizer {
        special: of_type(CONTROL),
        added: of_type(USER_DEFINED),
        unused: of_type(UNUSED),
        merges: metadata.texts(MERGES)?,
        bos_id: id(BOS_ID),
        eos_id: id(EOS_ID),
        pad_id: id(PADDING_ID),
        unk_id: id(UNKNOWN_ID),
        add_bos: add_bos
            .and_then(Value::bool)
            .unwrap_or(adds_bos_unsaid(pre_tokenizer)),
        pre_tokenizer: pre_tokenizer.to_owned(),
        chat_template: template.and_then(Value::text).map(str::to_owned),
        tokens,
    })
}
