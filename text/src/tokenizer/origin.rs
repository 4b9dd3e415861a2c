//! Provides a tokenizer's files by name, bounded: those of a directory, or texts that another file holds.

use std::path::{Path, PathBuf};

use distill_program::files;
use serde_json::Value;

use super::load::bad;
use crate::{
    Result,
    limits::{CONFIG_FILE_BYTES_MAX, TOKENIZER_FILE_BYTES_MAX},
};

/// Where the files are.
#[derive(Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// A directory.
    Directory(&'a Path),
    /// What the file at `path` says instead, by the names that the files would have.
    Texts {
        path: &'a Path,
        texts: &'a [(&'static str, String)],
    },
}

impl Origin<'_> {
    /// The directory or the file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Texts { path, .. } => path,
        }
    }

    /// What messages call the file `name`.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Text of the file `name`; `None` where there is no such file.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                let bytes_max = match name {
                    "tokenizer.json" => TOKENIZER_FILE_BYTES_MAX,
                    _ => CONFIG_FILE_BYTES_MAX,
                };
                Ok(files::if_there(files::read_text(&path, bytes_max))?)
            }
            Self::Texts { texts, .. } => {
                let text = texts.iter().find(|(known, _)| *known == name);
                Ok(text.map(|(_, text)| text.clone()))
            }
        }
    }

    /// The JSON file `name`, with what messages call it; `None` where there is no such file.
    pub fn json(&self, name: &str) -> Result<Option<(PathBuf, Value)>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let path = self.path_of(name);
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| bad(&path, "file", format!("not JSON, or truncated: {e}")))?;
        if !value.is_object() {
            return Err(bad(&path, "file", "is not a JSON object"));
        }
        Ok(Some((path, value)))
    }
}
