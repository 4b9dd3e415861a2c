//! Provides the crate's error type: what was wrong, in which file, tensor or option, and what to do about it.

use std::path::{Path, PathBuf};

use crate::device_memory::{Bytes, Room};

/// Everything that can go wrong while a model is read, built or run.
///
/// Messages carry their causes themselves. So no variant has a `source`: what prints a whole chain would say a reason twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open, read or map a file.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// A file's content is not what its format demands.
    #[error("{}: {field}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The field or part of the file, such as `header` or `weight_map`.
        field: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A tensor's description or content is wrong.
    #[error("{}: tensor `{tensor}`: {message}", path.display())]
    Tensor {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A file is not what it was when it was opened, and may have been fingerprinted.
    #[error(
        "{} was changed while this program used it: {how}; bring the file back as it was, or start again to use what it is now",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// What shows it.
        how: String,
    },
    /// A tensor that the model needs is in none of the files.
    #[error(
        "{}: there is no tensor `{tensor}`; check that config.json belongs to these weights and that no shard is missing",
        path.display()
    )]
    MissingTensor {
        /// The directory or file that was searched.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// The model or checkpoint uses something that this crate does not do.
    #[error("{what} is not supported: {remedy}")]
    Unsupported {
        /// The feature, with the value that was found.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// An option's value makes no sense, alone or beside another one.
    #[error("option `{option}`: {message}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// What is wrong and which values are allowed.
        message: String,
    },
    /// Two sizes that must agree do not.
    #[error("{what}: expected shape {expected:?}, got {actual:?}")]
    Shape {
        /// What has the wrong shape.
        what: String,
        /// The shape that was needed.
        expected: Vec<usize>,
        /// The shape that was found.
        actual: Vec<usize>,
    },
    /// The device has no room.
    #[error("{what} needs {}, but {room}; {remedy}", need(*need_bytes))]
    OutOfMemory {
        /// What was to be done.
        what: String,
        /// How much it takes, where that is known beforehand.
        need_bytes: Option<u64>,
        /// What there was.
        room: Room,
        /// Which setting lowers it.
        remedy: String,
    },
    /// The device failed, and answers nothing more in this process.
    #[error(
        "{device} was lost while {what} computed ({reason}): what it held is gone, and this process cannot use it again; see what \
         the system's log says of it, then start again"
    )]
    DeviceLost {
        /// Its name.
        device: String,
        /// Who computed.
        what: String,
        /// The driver's own words.
        reason: String,
    },
    /// The tokens given to a model do not fit it.
    #[error("{0}")]
    Input(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn need(bytes: Option<u64>) -> String {
    bytes.map_or_else(
        || "more memory".to_owned(),
        |bytes| Bytes(bytes).to_string(),
    )
}

impl Error {
    pub(crate) fn io(path: &Path, reason: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            reason,
        }
    }

    pub(crate) fn malformed(
        path: &Path,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            field: field.into(),
            message: message.into(),
        }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, message: impl Into<String>) -> Self {
        Self::Tensor {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            message: message.into(),
        }
    }

    pub(crate) fn shape(what: impl Into<String>, expected: &[usize], actual: &[usize]) -> Self {
        Self::Shape {
            what: what.into(),
            expected: expected.to_owned(),
            actual: actual.to_owned(),
        }
    }
}
