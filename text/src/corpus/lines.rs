//! Provides bounded lines of a file with their number, for errors that say where.

use std::{
    io::{BufRead, Read},
    path::{Path, PathBuf},
};

use distill_program::FileError;

use crate::{Error, Result};

/// Lines of one file, their line breaks included.
pub(super) struct Lines<'a> {
    reader: Box<dyn BufRead + 'a>,
    path: PathBuf,
    line: u64,
    bytes: Vec<u8>,
    consumed: u64,
}

impl<'a> Lines<'a> {
    pub fn new(reader: impl BufRead + 'a, path: &Path) -> Self {
        Self {
            reader: Box::new(reader),
            path: path.to_owned(),
            line: 0,
            bytes: Vec::new(),
            consumed: 0,
        }
    }

    /// The next line, or why it is none; a byte-order mark before the first is dropped. A line beyond the limit is passed
    /// over.
    pub fn next(&mut self, limit: usize) -> Result<Option<std::result::Result<&str, Error>>> {
        self.bytes.clear();
        self.line += 1;
        let bounded = &mut self.reader;
        bounded
            .take(limit as u64 + 1)
            .read_until(b'\n', &mut self.bytes)
            .map_err(FileError::at("read", &self.path))?;
        self.consumed = self.bytes.len() as u64;
        if self.bytes.is_empty() {
            return Ok(None);
        }
        if self.bytes.len() > limit {
            self.pass_over_rest()?;
            let reason = format!("the line is longer than {limit} bytes");
            return Ok(Some(Err(self.error(reason))));
        }
        Ok(Some(match std::str::from_utf8(&self.bytes) {
            Ok(line) if self.line == 1 => {
                let line = line.strip_prefix('\u{feff}').unwrap_or(line);
                self.consumed = line.len() as u64;
                Ok(line)
            }
            Ok(line) => Ok(line),
            Err(e) => Err(self.error(format!("not UTF-8 from byte {} on", e.valid_up_to()))),
        }))
    }

    /// Bytes of the line read last, its line break included.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    fn pass_over_rest(&mut self) -> Result<()> {
        let mut ended = self.bytes.ends_with(b"\n");
        while !ended {
            let buffered = self
                .reader
                .fill_buf()
                .map_err(FileError::at("read", &self.path))?;
            let at = buffered.iter().position(|&byte| byte == b'\n');
            let taken = at.map_or(buffered.len(), |at| at + 1);
            ended = at.is_some() || buffered.is_empty();
            self.reader.consume(taken);
            self.consumed += taken as u64;
        }
        Ok(())
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
