//! Provides the error of this crate.

/// What can be wrong with bytes from a peer or a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Placeholder while the codec is being written.
    #[error("not written yet")]
    Todo,
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;
