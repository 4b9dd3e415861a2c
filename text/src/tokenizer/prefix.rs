//! Provides whether a tokenizer puts something before every text, as Llama 2's puts a space.

use serde_json::Value;
use tokenizers::Tokenizer;

use super::digest::{flatten, json};

/// Whether the first token of a text can differ from what it is inside a longer one, because of what is put before it.
pub(super) fn puts_before(tokenizer: &Tokenizer) -> bool {
    // A part that cannot be written as JSON was never read from any.
    let normalizer = json(&tokenizer.get_normalizer()).unwrap_or_default();
    let pre_tokenizer = json(&tokenizer.get_pre_tokenizer()).unwrap_or_default();
    let parts = [
        flatten(normalizer, "normalizers"),
        flatten(pre_tokenizer, "pretokenizers"),
    ];
    let mut parts = parts.iter().filter_map(Value::as_array).flatten();
    parts.any(part_puts_before)
}

fn part_puts_before(part: &Value) -> bool {
    match part.get("type").and_then(Value::as_str) {
        Some("Prepend") => true,
        Some("Metaspace") => part.get("prepend_scheme") != Some(&Value::from("never")),
        Some("ByteLevel") => part.get("add_prefix_space") == Some(&Value::Bool(true)),
        Some("Replace") => part
            .pointer("/pattern/Regex")
            .and_then(Value::as_str)
            .is_some_and(|pattern| pattern.starts_with('^') || pattern.starts_with("\\A")),
        _ => false,
    }
}
