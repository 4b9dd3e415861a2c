//! Provides the tokenizer's fingerprints: of what it does, and of which id means which token.

use std::path::Path;

use distill_proto::{Fingerprint, fingerprint::FingerprintBuilder};
use serde::Serialize;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::{guard::guarded, load::bad};
use crate::Result;

/// Digest of vocabulary, merges and the model's other settings, normaliser, pre-tokenizer and added tokens.
pub(super) fn behaviour(tokenizer: &Tokenizer, path: &Path) -> Result<Fingerprint> {
    let part = |field: &'static str, value: Result<Value, String>| {
        value.map_err(|reason| bad(path, field, reason))
    };
    let mut model = part("model", json(tokenizer.get_model()))?;
    // The whole vocabulary is digested below with the added tokens in it: some uploads repeat those here. Merges were read
    // from either spelling and are pairs now.
    if let Some(fields) = model.as_object_mut()
        && fields.get("vocab").is_some_and(Value::is_object)
    {
        fields.remove("vocab");
    }
    let normalizer = part("normalizer", json(&tokenizer.get_normalizer()))?;
    let pre_tokenizer = part("pre_tokenizer", json(&tokenizer.get_pre_tokenizer()))?;
    Ok(FingerprintBuilder::new("tokenizer")
        .field("vocabulary", &vocabulary(tokenizer).0)
        .field("model", &canonical_bytes(model))
        .field(
            "normalizer",
            &canonical_bytes(flatten(normalizer, "normalizers")),
        )
        .field(
            "pre_tokenizer",
            &canonical_bytes(flatten(pre_tokenizer, "pretokenizers")),
        )
        .field("added_tokens", &canonical_bytes(added_tokens(tokenizer)))
        .finish())
}

/// Digest of all (id, token) pairs in order of id.
pub(super) fn vocabulary(tokenizer: &Tokenizer) -> Fingerprint {
    let mut tokens: Vec<(u32, String)> = tokenizer
        .get_vocab(true)
        .into_iter()
        .map(|(token, id)| (id, token))
        .collect();
    tokens.sort_unstable();
    let mut builder = FingerprintBuilder::new("vocabulary");
    for (id, token) in tokens {
        builder = builder
            .field("id", &id.to_le_bytes())
            .field("token", token.as_bytes());
    }
    builder.finish()
}

pub(super) fn json(part: &impl Serialize) -> Result<Value, String> {
    guarded(|| serde_json::to_value(part).map_err(|e| e.to_string()))
}

/// Added tokens in order of id, with every flag that decides how they are found in a text.
fn added_tokens(tokenizer: &Tokenizer) -> Value {
    let mut tokens: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    tokens.sort_unstable_by_key(|(id, _)| *id);
    let fields = tokens.into_iter().map(|(id, token)| {
        serde_json::json!([
            id,
            token.content,
            token.single_word,
            token.lstrip,
            token.rstrip,
            token.normalized,
            token.special
        ])
    });
    Value::Array(fields.collect())
}

/// A sequence of parts does what its parts do: nested ones are unrolled, one of one part is the part, an empty one nothing.
pub(super) fn flatten(part: Value, list: &str) -> Value {
    fn unroll(part: Value, list: &str, out: &mut Vec<Value>) {
        match part {
            Value::Null => {}
            Value::Object(mut fields) if fields.get(list).is_some_and(Value::is_array) => {
                if let Some(Value::Array(parts)) = fields.remove(list) {
                    parts.into_iter().for_each(|part| unroll(part, list, out));
                }
            }
            part => out.push(part),
        }
    }
    let mut parts = Vec::new();
    unroll(part, list, &mut parts);
    Value::Array(parts)
}

/// Bytes of a part's settings with sorted keys, without settings that do nothing.
fn canonical_bytes(value: Value) -> Vec<u8> {
    canonical(value).to_string().into_bytes()
}

fn canonical(value: Value) -> Value {
    match value {
        Value::Array(values) => Value::Array(values.into_iter().map(canonical).collect()),
        Value::Object(fields) => {
            let byte_level = fields.get("type").and_then(Value::as_str) == Some("ByteLevel");
            let mut kept: Vec<(String, Value)> = fields
                .into_iter()
                // An absent setting, null, false and the empty text are the same in every part of the library.
                .filter(|(_, value)| {
                    !matches!(value, Value::Null | Value::Bool(false)) && value.as_str() != Some("")
                })
                // Read by the post-processor only.
                .filter(|(key, _)| !(byte_level && key == "trim_offsets"))
                .map(|(key, value)| (key, canonical(value)))
                .collect();
            kept.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(Map::from_iter(kept))
        }
        value => value,
    }
}
