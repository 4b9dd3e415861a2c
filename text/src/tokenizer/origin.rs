//! Provides a tokenizer's files by name, bounded: those of a directory, or texts that another file holds.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::load::bad;
use crate::{Result, error::io_at, limits::TOKENIZER_FILE_BYTES_MAX};

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
            Self::Directory(dir) => read_text(&dir.join(name)),
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
        match value.is_object() {
            true => Ok(Some((path, value))),
            false => Err(bad(&path, "file", "is not a JSON object")),
        }
    }
}

fn read_text(path: &Path) -> Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_at(path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(TOKENIZER_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(io_at(path))?;
    if bytes.len() as u64 > TOKENIZER_FILE_BYTES_MAX {
        let reason = format!("larger than {TOKENIZER_FILE_BYTES_MAX} bytes");
        return Err(bad(path, "file", reason));
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| bad(path, "file", format!("not UTF-8: {}", e.utf8_error())))?;
    Ok(Some(text))
}
