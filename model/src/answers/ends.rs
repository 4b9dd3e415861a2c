//! Provides the ids that end an answer: those at which transformers' `generate` ends one, and the tokenizer's own end of text.

use std::{collections::BTreeSet, path::Path};

use distill_program::files;
use distill_text::TokenizerFiles;
use serde_json::Value;

use crate::{Error, Result};

/// What says how a model generates; where there is no such file, transformers asks `config.json`.
const FILES: [&str; 2] = ["generation_config.json", "config.json"];
const KEY: &str = "eos_token_id";
/// Longest file that is read; real ones are a few KiB.
const BYTES_MAX: u64 = 1 << 20;

/// Every id of `eos_token_id`, a number or a list, and the tokenizer's end of text, with which completions are trained to end.
///
/// # Errors
/// A file that cannot be read, or an `eos_token_id` that is neither.
pub fn end_ids(directory: &Path, tokenizer: &TokenizerFiles) -> Result<BTreeSet<u32>> {
    let mut ends: BTreeSet<u32> = tokenizer.eos_id().into_iter().collect();
    let mut paths = FILES.iter().map(|name| directory.join(name));
    if let Some(path) = paths.find(|path| path.is_file()) {
        ends.extend(written(&path)?);
    }
    Ok(ends)
}

fn written(path: &Path) -> Result<Vec<u32>> {
    let bytes = files::read(path, BYTES_MAX).map_err(|e| Error::io(path, e.reason))?;
    let fields: Value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::malformed(path, "file", e.to_string()))?;
    let value = match fields.get(KEY) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(value) => value,
    };
    let ids: Option<Vec<i64>> = match value {
        Value::Array(ids) => ids.iter().map(Value::as_i64).collect(),
        id => id.as_i64().map(|id| vec![id]),
    };
    let ids = ids.ok_or_else(|| {
        let problem = format!("{value} is neither a token id nor a list of them");
        Error::malformed(path, KEY, problem)
    })?;
    // Some write -1 for none; no token has that id.
    Ok(ids
        .into_iter()
        .filter_map(|id| id.try_into().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn write_tokenizer(directory: &Path) -> TokenizerFiles {
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "</s>": 2, "<eot>": 3}, "unk_token": "a"},
        });
        fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let config = json!({"eos_token": "</s>"});
        fs::write(directory.join("tokenizer_config.json"), config.to_string()).unwrap();
        TokenizerFiles::open(directory).unwrap()
    }

    #[test]
    fn answers_went_on_after_every_end_but_the_tokenizers() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = write_tokenizer(dir.path());
        let ends = || -> Vec<u32> {
            let ends = end_ids(dir.path(), &tokenizer);
            ends.unwrap().into_iter().collect()
        };
        assert_eq!(ends(), [2]);
        let write = |name: &str, value: Value| {
            fs::write(dir.path().join(name), json!({KEY: value}).to_string()).unwrap();
        };
        for (value, expected) in [
            (json!(3), vec![2, 3]),
            (json!([3, 0]), vec![0, 2, 3]),
            (json!([2, 3]), vec![2, 3]),
            (json!([]), vec![2]),
            (json!(null), vec![2]),
            (json!(-1), vec![2]),
            // Beyond the vocabulary: an id that is never written.
            (json!([9000]), vec![2, 9000]),
        ] {
            write("config.json", value.clone());
            assert_eq!(ends(), expected, "{value}");
        }
        // The other file decides alone where it is there, even without saying anything.
        write("generation_config.json", json!([1]));
        assert_eq!(ends(), [1, 2]);
        fs::write(dir.path().join("generation_config.json"), "{}").unwrap();
        assert_eq!(ends(), [2]);
        for broken in [json!("</s>"), json!([1, "</s>"]), json!(1.5), json!({})] {
            write("generation_config.json", broken);
            let error = end_ids(dir.path(), &tokenizer).unwrap_err().to_string();
            assert!(
                error.contains("generation_config.json") && error.contains(KEY),
                "{error}"
            );
        }
    }
}
