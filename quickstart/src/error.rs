//! Provides the errors of the quickstart.

use std::path::PathBuf;

use distill_program::FileError;

/// What can go wrong; every message says where and what to do.
///
/// Messages carry their causes themselves. So no variant has a `source`: what prints a whole chain would say a reason twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read or written, or a program not started.
    #[error(transparent)]
    Io(#[from] FileError),
    /// More problems were asked for than there are distinct ones.
    #[error(
        "only {found} distinct problems of the split {split} were found where {wanted} were asked for; ask for fewer"
    )]
    Exhausted {
        /// The split's name.
        split: &'static str,
        /// Problems asked for.
        wanted: usize,
        /// Problems found.
        found: usize,
    },
    /// A template's numbers cannot be drawn within the limit of attempts.
    #[error(
        "template {template}: no numbers fit after {attempts} draws; widen the ranges of its clauses"
    )]
    Undrawable {
        /// The template's identifier.
        template: String,
        /// Draws made.
        attempts: u32,
    },
    /// A corpus file is not what the generator writes.
    #[error("{path}, line {line}: {reason}; make the file with `quickstart corpus`")]
    Corpus {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What was wrong.
        reason: String,
    },
    /// A setting is outside of what works.
    #[error("{name} is {value}: {reason}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// What it was set to.
        value: String,
        /// Why it is refused and what is accepted.
        reason: &'static str,
    },
    /// A run could not be started or one of its programs failed.
    #[error("{0}")]
    Job(String),
    /// Signals cannot be handled.
    #[error("cannot handle signals: {0}")]
    Signals(std::io::Error),
    /// The tokenizer could not be trained or written.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
