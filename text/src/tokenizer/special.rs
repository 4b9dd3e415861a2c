//! Provides the special tokens by name (`bos_token`, `eos_token`, ...) and the id that ends a completion.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde_json::Value;
use tokenizers::Tokenizer;

use super::{load::bad, origin::Origin};
use crate::Result;

/// Special tokens as the configuration names them.
pub(super) struct SpecialTokens {
    contents: BTreeMap<String, String>,
    eos_id: Option<u32>,
}

impl SpecialTokens {
    /// Reads `special_tokens_map.json` and `tokenizer_config.json`; the end-of-sequence id also from
    /// `generation_config.json` and `config.json`.
    ///
    /// A configuration with an `added_tokens_decoder` goes over the map, an older one under it, as in `transformers`.
    pub fn read(origin: Origin<'_>, tokenizer: &Tokenizer) -> Result<Self> {
        let mut contents = BTreeMap::new();
        let mut eos_id = None;
        let config = origin.json("tokenizer_config.json")?;
        let config = config.as_ref().map(|(_, config)| config);
        let mut names = ["special_tokens_map.json", "tokenizer_config.json"];
        if config.is_some_and(|config| config.get("added_tokens_decoder").is_none()) {
            names.reverse();
        }
        for name in names {
            let Some((path, value)) = origin.json(name)? else {
                continue;
            };
            let fields = value.as_object().into_iter().flatten();
            for (key, value) in fields.filter(|(key, _)| key.ends_with("_token")) {
                if let Some(content) = content(value) {
                    contents.insert(key.clone(), content.to_owned());
                }
            }
            if let Some(eos) = value.get("eos_token").and_then(content) {
                let id = tokenizer.token_to_id(eos).ok_or_else(|| {
                    bad(
                        &path,
                        "eos_token",
                        format!("{eos:?} is not in the vocabulary"),
                    )
                })?;
                eos_id = Some(id);
            }
        }
        if eos_id.is_none() {
            eos_id = configured_eos_id(origin, tokenizer)?;
        }
        Ok(Self { contents, eos_id })
    }

    /// Names and contents, as chat templates see them.
    pub fn contents(&self) -> &BTreeMap<String, String> {
        &self.contents
    }

    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }
}

/// Says what follows from a tokenizer without an end, once for every model.
pub(super) fn warn_of_no_end(path: &Path) {
    static SAID: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.insert(path.to_owned()) {
        tracing::warn!(
            "{}: no end of sequence: neither tokenizer_config.json and special_tokens_map.json (eos_token) nor \
             generation_config.json and config.json (eos_token_id) name one, so a completion gets no token that ends it and \
             a model trained on it does not learn to stop; set eos_token in tokenizer_config.json",
            path.display()
        );
    }
}

/// A token is written as its content or as an object with a `content`.
pub(super) fn content(value: &Value) -> Option<&str> {
    value
        .as_str()
        .or_else(|| value.get("content").and_then(Value::as_str))
}

fn configured_eos_id(origin: Origin<'_>, tokenizer: &Tokenizer) -> Result<Option<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let Some((path, value)) = origin.json(name)? else {
            continue;
        };
        let field = match value.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => ids.first().unwrap_or(&Value::Null),
            Some(id) => id,
        };
        let id = field.as_u64().and_then(|id| u32::try_from(id).ok());
        return match id.filter(|id| tokenizer.id_to_token(*id).is_some()) {
            Some(id) => Ok(Some(id)),
            None => Err(bad(
                &path,
                "eos_token_id",
                format!("{field} is not the id of a token"),
            )),
        };
    }
    Ok(None)
}
