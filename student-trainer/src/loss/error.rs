//! Provides the error of the losses: what a caller asked for that cannot be computed, and what to change.

/// What a caller asked of the losses that cannot be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// A setting has a value without meaning.
    #[error("loss setting `{key}`: {reason}")]
    Setting {
        /// The key as it stands in the configuration file.
        key: &'static str,
        /// What is wrong with it, and what would do.
        reason: String,
    },
    /// The settings ask for something that the teacher's rows cannot feed, or that this build does not have.
    #[error("{what} cannot be computed: {reason}")]
    Unsupported {
        /// The loss or the part of it.
        what: &'static str,
        /// Why, and what to do instead.
        reason: String,
    },
    /// Two inputs do not fit together.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which input.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// NaN or infinity in an input or a result.
    #[error(
        "{what} is not finite (position {position}): check the learning rate, the dtype and the weights; nothing was updated"
    )]
    NonFinite {
        /// Which quantity.
        what: &'static str,
        /// First row where it was seen.
        position: usize,
    },
    /// The tensor library refused.
    #[error("tensor operation in the loss: {0}")]
    Tensor(candle_core::Error),
}

// As `#[from]` would, which makes a `source` that the message says already.
impl From<candle_core::Error> for LossError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error)
    }
}

/// This module's result.
pub type Result<T> = std::result::Result<T, LossError>;

impl LossError {
    /// A `Shape` error from anything that prints.
    pub(crate) fn shape(
        what: &'static str,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::Shape {
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}
