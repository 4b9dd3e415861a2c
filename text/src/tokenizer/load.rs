//! Provides the reading of `tokenizer.json`, without a panic.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer,
};

use super::origin::Origin;
use crate::{Error, Result, limits::VOCAB_SIZE_MAX};

/// An error of one field of one file.
pub(super) fn bad(path: &Path, field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::TokenizerFile {
        path: path.to_owned(),
        field: field.into(),
        reason: reason.into(),
    }
}

/// Runs code of the `tokenizers` crate, which expects well-formed files in places, and turns its panic into a reason.
pub(super) fn guarded<T>(
    work: impl FnOnce() -> std::result::Result<T, String>,
) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the tokenizers library gave up on it".to_owned()))
}

/// Loads `tokenizer.json` without truncation and padding.
pub(super) fn tokenizer(origin: Origin<'_>) -> Result<(Tokenizer, PathBuf)> {
    let path = origin.path_of("tokenizer.json");
    let Some(text) = origin.text("tokenizer.json")? else {
        return Err(missing(origin.path(), &path));
    };
    let parsed: Value = serde_json::from_str(&text)
        .map_err(|e| bad(&path, "file", format!("not JSON, or truncated: {e}")))?;
    check_fields(&parsed, &path)?;
    let loaded = guarded(|| Tokenizer::from_bytes(text.as_bytes()).map_err(|e| e.to_string()));
    let mut tokenizer = loaded.map_err(|reason| bad(&path, culprit(&parsed), reason))?;
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some_and(|dropout| dropout != 0.0)
    {
        let reason = "makes tokens random; set it to null";
        return Err(bad(&path, "model.dropout", reason));
    }
    tokenizer
        .with_truncation(None)
        .map_err(|e| bad(&path, "truncation", e.to_string()))?;
    tokenizer.with_padding(None);
    Ok((tokenizer, path))
}

fn missing(dir: &Path, path: &Path) -> Error {
    let reason = if !dir.is_dir() {
        "no such directory"
    } else if dir.join("tokenizer.model").is_file() {
        "no such file; convert tokenizer.model with transformers' AutoTokenizer.from_pretrained(..).save_pretrained(..)"
    } else {
        "no such file; a model directory has it beside config.json"
    };
    bad(path, "file", reason)
}

/// Checks what the library takes on trust: the parts are there and no id is absurd.
fn check_fields(parsed: &Value, path: &Path) -> Result<()> {
    if parsed.get("model").is_none_or(|model| !model.is_object()) {
        return Err(bad(path, "model", "is missing or not an object"));
    }
    // BPE, WordPiece and WordLevel map token to id; Unigram lists tokens, so its ids are its length.
    let ids = match parsed.pointer("/model/vocab") {
        Some(Value::Object(vocab)) => vocab.iter().collect(),
        Some(Value::Array(vocab)) if vocab.len() as u64 > u64::from(VOCAB_SIZE_MAX) => {
            let reason = format!("{} tokens, above {VOCAB_SIZE_MAX}", vocab.len());
            return Err(bad(path, "model.vocab", reason));
        }
        _ => Vec::new(),
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

/// Which part of a `tokenizer.json` that does not load is at fault.
fn culprit(parsed: &Value) -> &'static str {
    fn fine<T: DeserializeOwned>(parsed: &Value, field: &str) -> bool {
        let part = parsed.get(field).cloned().unwrap_or(Value::Null);
        guarded(|| serde_json::from_value::<Option<T>>(part).map_err(|e| e.to_string())).is_ok()
    }
    let parts = [
        (
            "normalizer",
            fine::<NormalizerWrapper>(parsed, "normalizer"),
        ),
        (
            "pre_tokenizer",
            fine::<PreTokenizerWrapper>(parsed, "pre_tokenizer"),
        ),
        (
            "post_processor",
            fine::<PostProcessorWrapper>(parsed, "post_processor"),
        ),
        ("decoder", fine::<DecoderWrapper>(parsed, "decoder")),
        ("model", fine::<ModelWrapper>(parsed, "model")),
    ];
    let found = parts.into_iter().find(|(_, fine)| !fine);
    found.map_or(
        "added_tokens, truncation, padding or version",
        |(name, _)| name,
    )
}

/// Takes the post-processor off and returns the ids it put before a text.
pub(super) fn take_post_processor(tokenizer: &mut Tokenizer, path: &Path) -> Result<Vec<u32>> {
    let with = guarded(|| tokenizer.encode("", true).map_err(|e| e.to_string()))
        .map_err(|reason| bad(path, "post_processor", reason))?;
    // Around an empty text there is the prefix and perhaps a suffix (an end-of-text that BERT-like models want); the text
    // "a" tells which is which.
    let around = guarded(|| tokenizer.encode("a", true).map_err(|e| e.to_string()))
        .map_err(|reason| bad(path, "post_processor", reason))?;
    let specials = around.get_special_tokens_mask().iter();
    let leading = specials.take_while(|&&special| special == 1).count();
    let prefix = with.get_ids().iter().take(leading).copied().collect();
    tokenizer.with_post_processor(None::<PostProcessorWrapper>);
    Ok(prefix)
}

/// The largest known id plus one.
pub(super) fn size(tokenizer: &Tokenizer, path: &Path) -> Result<u32> {
    let largest = tokenizer.get_vocab(true).into_values().max();
    match largest {
        None => Err(bad(path, "model.vocab", "is empty")),
        Some(id) if id >= VOCAB_SIZE_MAX => {
            let reason = format!("give id {id}, above {VOCAB_SIZE_MAX}");
            Err(bad(path, "added_tokens", reason))
        }
        Some(id) => Ok(id + 1),
    }
}
