//! Provides the error of everything that is done to files: what was tried, on which path, and what the system said.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A file or directory on which something could not be done.
///
/// Errors of programs carry it as one of theirs. Its message has the reason, which is no `source`: what prints a whole
/// chain would say it twice.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {reason}", path.display())]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the system said.
    pub reason: io::Error,
}

impl FileError {
    /// For `map_err` on file operations: `fs::copy(from, to).map_err(FileError::at("copy", from))`.
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |reason| Self {
            action,
            path: path.to_owned(),
            reason,
        }
    }

    /// The same, of an action that says more.
    pub fn during(self, action: &'static str) -> Self {
        Self { action, ..self }
    }

    /// Whether there is nothing at the path.
    pub fn is_missing(&self) -> bool {
        self.reason.kind() == io::ErrorKind::NotFound
    }
}
