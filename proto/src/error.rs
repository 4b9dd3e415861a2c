//! Provides the error of this crate: what can be wrong with bytes from a peer or a file.

/// What can be wrong with bytes from a peer or a file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A length is larger than this build accepts.
    #[error("{what} is {value}, above the limit of {limit}")]
    LimitExceeded {
        /// Which length.
        what: &'static str,
        /// What was found.
        value: u64,
        /// The named limit in `limits`.
        limit: u64,
    },
    /// The bytes end early, or go on after their end.
    #[error(
        "frame {index}: {what} needs {needed} bytes but {available} are there; the frame is truncated or damaged"
    )]
    Length {
        /// Frame index, where known.
        index: u64,
        /// Which part.
        what: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// Not a frame at all.
    #[error("not a logit frame: it does not start with the magic bytes DSTF")]
    BadMagic,
    /// Written by another version of the layout.
    #[error(
        "frame format version {found} is not readable by this build, which reads {supported}; update both sides"
    )]
    UnsupportedVersion {
        /// Version in the header.
        found: u16,
        /// Version of this build.
        supported: u16,
    },
    /// The checksum does not cover these bytes in this place.
    #[error(
        "frame {index}: checksum mismatch: damaged, or belongs to another plan, shard or index"
    )]
    Checksum {
        /// Index the caller expected.
        index: u64,
    },
    /// A valid-looking frame in the wrong place.
    #[error("expected frame {expected} but the header says {found}")]
    WrongIndex {
        /// Index the caller expected.
        expected: u64,
        /// Index in the header.
        found: u64,
    },
    /// A field holds a value outside its meaning.
    #[error("frame {index}: {what}: {reason}")]
    Invalid {
        /// Frame index.
        index: u64,
        /// Which field.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The compressed body cannot be read or written.
    #[error("frame {index}: compressed body: {reason}")]
    Compression {
        /// Frame index.
        index: u64,
        /// zstd's words.
        reason: String,
    },
    /// A coded part that no encoder wrote.
    #[error("frame {index}: coded rows: {reason}")]
    Entropy {
        /// Frame index.
        index: u64,
        /// What is wrong with the stream.
        reason: &'static str,
    },
    /// A shard whose header or table cannot be used.
    #[error("shard {number}, byte {offset}: {reason}")]
    Shard {
        /// Number in the file's name or header.
        number: u32,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A stream cursor that this server did not make.
    #[error("the cursor is not one of this server's ({0}); start again with an empty cursor")]
    Cursor(&'static str),
}

impl Error {
    /// What went wrong in one word, for `google.rpc.ErrorInfo.reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::LimitExceeded { .. } => "LIMIT_EXCEEDED",
            Self::Length { .. } => "FRAME_TRUNCATED",
            Self::BadMagic => "NOT_A_FRAME",
            Self::UnsupportedVersion { .. } => "UNSUPPORTED_FORMAT_VERSION",
            Self::Checksum { .. } => "CHECKSUM_MISMATCH",
            Self::WrongIndex { .. } => "WRONG_FRAME_INDEX",
            Self::Invalid { .. } => "INVALID_FRAME",
            Self::Compression { .. } => "BAD_COMPRESSION",
            Self::Entropy { .. } => "BAD_COMPRESSION",
            Self::Shard { .. } => "INVALID_SHARD",
            Self::Cursor(_) => "BAD_CURSOR",
        }
    }
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;
