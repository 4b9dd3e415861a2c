//! Provides the checks of a `tokenizer.json` before the library builds it: what it takes on trust, and what would grow.

use std::path::Path;

use serde_json::{Map, Value};

use super::load::bad;
use crate::{
    Result,
    limits::{
        ADDED_BYTES_MAX, CHARSMAP_BYTES_MAX, LONGER_PARTS_MAX, REGEX_BYTES_MAX,
        TEMPLATE_TOKENS_MAX, TOKENIZER_PARTS_MAX, VOCAB_SIZE_MAX,
    },
};

/// Parts that hold rules of their author's making.
const PARTS: [&str; 4] = ["normalizer", "pre_tokenizer", "post_processor", "decoder"];

/// Checks what the library takes on trust: the parts are there, no id is absurd and no part is.
pub(super) fn check(parsed: &Value, path: &Path) -> Result<()> {
    if parsed.get("model").is_none_or(|model| !model.is_object()) {
        return Err(bad(path, "model", "is missing or not an object"));
    }
    check_ids(parsed, path)?;
    let mut longer = 0;
    for field in PARTS {
        let mut rules = Rules::default();
        if let Some(part) = parsed.get(field) {
            rules
                .visit(part)
                .map_err(|reason| bad(path, field, reason))?;
        }
        // The decoder's are the way back.
        if field == "normalizer" || field == "pre_tokenizer" {
            longer += rules.longer;
        }
    }
    if longer > LONGER_PARTS_MAX {
        let reason =
            format!("ByteLevel and Metaspace {longer} times over, above {LONGER_PARTS_MAX}");
        return Err(bad(path, "pre_tokenizer", reason));
    }
    Ok(())
}

fn check_ids(parsed: &Value, path: &Path) -> Result<()> {
    // BPE, WordPiece and WordLevel map token to id; Unigram lists tokens, so its ids are its length.
    let ids = match parsed.pointer("/model/vocab") {
        Some(Value::Object(vocab)) => vocab,
        Some(Value::Array(vocab)) if vocab.len() as u64 > u64::from(VOCAB_SIZE_MAX) => {
            let reason = format!("{} tokens, above {VOCAB_SIZE_MAX}", vocab.len());
            return Err(bad(path, "model.vocab", reason));
        }
        _ => return Ok(()),
    };
    for (token, id) in ids {
        if id.as_u64().is_none_or(|id| id >= u64::from(VOCAB_SIZE_MAX)) {
            let reason =
                format!("token {token:?} has id {id}, not a number below {VOCAB_SIZE_MAX}");
            return Err(bad(path, "model.vocab", reason));
        }
    }
    Ok(())
}

/// Checks the bytes of all added tokens together; a search tree is built over them.
pub(super) fn check_added<'a>(contents: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let bytes: usize = contents.map(str::len).sum();
    if bytes > ADDED_BYTES_MAX {
        return Err(format!(
            "tokens of {bytes} bytes together, above {ADDED_BYTES_MAX}"
        ));
    }
    Ok(())
}

/// What has been seen of one part.
#[derive(Default)]
struct Rules {
    objects: usize,
    /// Parts that write more bytes than they are given.
    longer: usize,
}

impl Rules {
    fn visit(&mut self, value: &Value) -> Result<(), String> {
        match value {
            Value::Array(values) => values.iter().try_for_each(|value| self.visit(value)),
            Value::Object(fields) => {
                self.check(fields)?;
                fields.values().try_for_each(|value| self.visit(value))
            }
            _ => Ok(()),
        }
    }

    fn check(&mut self, fields: &Map<String, Value>) -> Result<(), String> {
        self.objects += 1;
        if self.objects > TOKENIZER_PARTS_MAX {
            return Err(format!("more than {TOKENIZER_PARTS_MAX} rules"));
        }
        let kind = fields.get("type").and_then(Value::as_str);
        if matches!(kind, Some("ByteLevel" | "Metaspace")) {
            self.longer += 1;
        }
        for (field, bytes_max) in [
            ("Regex", REGEX_BYTES_MAX),
            ("precompiled_charsmap", CHARSMAP_BYTES_MAX),
        ] {
            let text = fields.get(field).and_then(Value::as_str);
            if let Some(text) = text.filter(|text| text.len() > bytes_max) {
                return Err(format!(
                    "{field} of {} bytes, above {bytes_max}",
                    text.len()
                ));
            }
        }
        let tokens = template_tokens(fields);
        if tokens > TEMPLATE_TOKENS_MAX {
            return Err(format!(
                "a template of up to {tokens} tokens, above {TEMPLATE_TOKENS_MAX}"
            ));
        }
        Ok(())
    }
}

/// The most tokens that a TemplateProcessing can put around a text: all its pieces, each the longest special token.
fn template_tokens(fields: &Map<String, Value>) -> usize {
    let pieces = match fields.get("single") {
        Some(Value::Array(pieces)) => pieces.len(),
        Some(Value::String(pieces)) => pieces.split(' ').count(),
        _ => return 0,
    };
    let tokens: Vec<&Value> = match fields.get("special_tokens") {
        Some(Value::Object(tokens)) => tokens.values().collect(),
        Some(Value::Array(tokens)) => tokens.iter().collect(),
        _ => Vec::new(),
    };
    let ids = |token: &Value| token.get("ids").and_then(Value::as_array).map(Vec::len);
    let longest = tokens.into_iter().filter_map(ids).max();
    pieces.saturating_mul(longest.unwrap_or(1).max(1))
}
