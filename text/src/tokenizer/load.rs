//! Provides the building of a tokenizer from its files, bounded in time and memory and without a panic.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer,
};

use super::{
    added::AddedTokens,
    bounds, bytes, encode,
    guard::{guarded, within},
    normalize::Rules,
    origin::Origin,
};
use crate::{
    Error, Result,
    limits::{TOKENIZER_PATIENCE, VOCAB_SIZE_MAX},
};

/// An error of one field of one file.
pub(super) fn bad(path: &Path, field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::TokenizerFile {
        path: path.to_owned(),
        field: field.into(),
        reason: reason.into(),
    }
}

/// A tokenizer as it was built.
pub(super) struct Built {
    /// Without truncation, padding and post-processor.
    pub tokenizer: Tokenizer,
    /// Its normaliser, taken apart.
    pub rules: Rules,
    /// What its post-processor puts before a text.
    pub prefix_ids: Vec<u32>,
    /// The largest known id plus one.
    pub size: u32,
    /// `tokenizer.json`.
    pub path: PathBuf,
}

/// Builds the tokenizer of `tokenizer.json` and the files beside it.
pub(super) fn load(origin: Origin<'_>) -> Result<Built> {
    let path = origin.path_of("tokenizer.json");
    let Some(text) = origin.text("tokenizer.json")? else {
        return Err(missing(origin.path(), &path));
    };
    let parsed: Value = serde_json::from_str(&text)
        .map_err(|e| bad(&path, "file", format!("not JSON, or truncated: {e}")))?;
    let added = AddedTokens::read(origin, &parsed)?;
    let file = path.clone();
    within(TOKENIZER_PATIENCE, move || {
        build(&text, &parsed, &added, path)
    })
    .map_err(|reason| bad(&file, "file", reason))?
}

fn build(text: &str, parsed: &Value, added: &AddedTokens, path: PathBuf) -> Result<Built> {
    bounds::check(parsed, &path)?;
    let normalizer: Option<NormalizerWrapper> =
        part(parsed, "normalizer").map_err(|reason| bad(&path, "normalizer", reason))?;
    let rules =
        Rules::new(normalizer.as_ref()).map_err(|reason| bad(&path, "normalizer", reason))?;
    // The library normalises added tokens while it builds the tokenizer.
    added.check(parsed, &rules, &path)?;
    let loaded = guarded(|| Tokenizer::from_bytes(text.as_bytes()).map_err(|e| e.to_string()));
    let mut tokenizer = loaded.map_err(|reason| bad(&path, culprit(parsed), reason))?;
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
    added.add_to(&mut tokenizer)?;
    let size = size(&tokenizer, &path)?;
    bytes::check(&tokenizer).map_err(|reason| bad(&path, "decoder", reason))?;
    for text in trial_texts() {
        encode::encode(&tokenizer, &rules, &text).map_err(|e| {
            let field = "normalizer, pre_tokenizer or model";
            bad(&path, field, format!("a short text cannot be encoded: {e}"))
        })?;
    }
    let prefix_ids = take_post_processor(&mut tokenizer, &path)?;
    Ok(Built {
        tokenizer,
        rules,
        prefix_ids,
        size,
        path,
    })
}

/// Short texts that bring out rules and patterns that take too long, before a corpus does: much of the same, and the same
/// with an end that a pattern may not want.
fn trial_texts() -> impl Iterator<Item = String> {
    const TRIAL_BYTES: usize = 2048;
    let repeated = ["a", " ", "\n", "0", "ab ", "é世 ", "!"].into_iter();
    let repeated = repeated.flat_map(|text| {
        let much = text.repeat(TRIAL_BYTES / text.len());
        [much.clone() + "\0", much]
    });
    ["".to_owned(), "a".to_owned()].into_iter().chain(repeated)
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

/// Which part of a `tokenizer.json` that does not load is at fault.
fn culprit(parsed: &Value) -> &'static str {
    fn fine<T: DeserializeOwned>(parsed: &Value, field: &str) -> bool {
        part::<T>(parsed, field).is_ok()
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

/// One part of a `tokenizer.json`.
fn part<T: DeserializeOwned>(parsed: &Value, field: &str) -> Result<Option<T>, String> {
    let part = parsed.get(field).cloned().unwrap_or(Value::Null);
    guarded(|| serde_json::from_value(part).map_err(|e| e.to_string()))
}

/// Takes the post-processor off and returns the ids it put before a text.
fn take_post_processor(tokenizer: &mut Tokenizer, path: &Path) -> Result<Vec<u32>> {
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
fn size(tokenizer: &Tokenizer, path: &Path) -> Result<u32> {
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
