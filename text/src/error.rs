//! Provides the error of this crate: what is wrong, in which file and line or field, and what to do.

use std::path::PathBuf;

use distill_program::FileError;

/// What can be wrong with a tokenizer directory or a corpus.
///
/// Messages carry their causes themselves. So no variant has a `source`: what prints a whole chain would say a reason twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] FileError),
    /// A file of the tokenizer directory cannot be used.
    #[error("{}: {field}: {reason}", path.display())]
    TokenizerFile {
        /// Which file.
        path: PathBuf,
        /// Which field of it, `file` for the file as a whole.
        field: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A corpus file cannot be used at all.
    #[error("{}: {reason}", path.display())]
    CorpusFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A line of a corpus file cannot be used.
    #[error("{}:{line}: {reason}", path.display())]
    CorpusLine {
        /// Which file.
        path: PathBuf,
        /// Line, counted from 1.
        line: u64,
        /// What was found and what was expected.
        reason: String,
    },
    /// A row of a corpus file cannot be used.
    #[error("{}: row {row}: {reason}", path.display())]
    CorpusRow {
        /// Which file.
        path: PathBuf,
        /// Row, counted from 1 over all row groups.
        row: u64,
        /// What was found in which column, and what was expected.
        reason: String,
    },
    /// The corpus has messages, and the tokenizer has no chat template.
    #[error(
        "chat template: {} has none (chat_template.jinja, or chat_template in tokenizer_config.json), so no conversation \
         can be rendered; use the model's instruction-tuned variant, or plain text (in a corpus `prompt` and `completion`)",
        path.display()
    )]
    NoChatTemplate {
        /// Directory of the tokenizer.
        path: PathBuf,
    },
    /// The chat template cannot render these messages.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// The tokenizer cannot encode a text.
    #[error("tokenizer: {0}")]
    Encode(String),
    /// The sides of a pair do not fit together, or one of them is no record.
    #[error("{0}")]
    Pair(String),
    /// The windowing settings contradict themselves.
    #[error("windowing: {0}")]
    Windowing(String),
    /// Nothing is left to train or evaluate on.
    #[error("the corpus has no sequence with a target: {0}")]
    EmptyCorpus(String),
    /// The corpus does not fit in memory.
    #[error("the corpus has more than {limit} tokens; split it into several runs")]
    CorpusTooLarge {
        /// `limits::CORPUS_TOKENS_MAX`.
        limit: u64,
    },
}

impl Error {
    /// Says where the document was that this error is about; an error of the receiver of sequences passes unchanged.
    pub(crate) fn of_document(self, at: impl FnOnce(String) -> Self) -> Self {
        match self {
            Self::ChatTemplate(_) | Self::Encode(_) | Self::Pair(_) | Self::Windowing(_) => {
                at(self.to_string())
            }
            other => other,
        }
    }

    /// Whether it is about one line or row alone, and the others can be used.
    pub(crate) fn is_of_a_row(&self) -> bool {
        matches!(self, Self::CorpusLine { .. } | Self::CorpusRow { .. })
    }
}

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
