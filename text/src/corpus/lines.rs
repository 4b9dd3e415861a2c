//! Provides bounded lines of a file with their number, for errors that say where.

use std::{
    io::{BufRead, Read},
    path::{Path, PathBuf},
};

use crate::{Error, Result, error::io_at};

/// Lines of one file, their line breaks included.
pub(super) struct Lines<'a> {
    reader: Box<dyn BufRead + 'a>,
    path: PathBuf,
    line: u64,
    bytes: Vec<u8>,
}

impl<'a> Lines<'a> {
    pub fn new(reader: impl BufRead + 'a, path: &Path) -> Self {
        Self {
            reader: Box::new(reader),
            path: path.to_owned(),
            line: 0,
            bytes: Vec::new(),
        }
    }

    /// The next line; a byte-order mark before the first is dropped.
    pub fn next(&mut self, limit: usize) -> Result<Option<&str>> {
        self.bytes.clear();
        self.line += 1;
        let bounded = &mut self.reader;
        bounded
            .take(limit as u64 + 1)
            .read_until(b'\n', &mut self.bytes)
            .map_err(io_at(&self.path))?;
        if self.bytes.is_empty() {
            return Ok(None);
        }
        if self.bytes.len() > limit {
            return Err(self.error(format!("the line is longer than {limit} bytes")));
        }
        match std::str::from_utf8(&self.bytes) {
            Ok(line) if self.line == 1 => Ok(Some(line.trim_start_matches('\u{feff}'))),
            Ok(line) => Ok(Some(line)),
            Err(e) => Err(self.error(format!("not UTF-8 from byte {} on", e.valid_up_to()))),
        }
    }

    /// An error at the line read last.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::CorpusLine {
            path: self.path.clone(),
            line: self.line,
            reason: reason.into(),
        }
    }

    /// Adds file and line to an error of a document; an error of the receiver of sequences passes unchanged.
    pub fn locate(&self, error: Error) -> Error {
        error.of_document(|reason| self.error(reason))
    }
}
