//! Provides the error of this crate: what went wrong, where, and what to do about it.

use std::path::{Path, PathBuf};

use distill_program::{FileError, settings};

use crate::loss::LossError;

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while a student is trained, evaluated or planned.
///
/// Messages carry their causes themselves. So no variant has a `source`: what prints a whole chain would say a reason twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is unknown, missing or outside its meaning.
    #[error("{0}")]
    Config(String),
    /// A setting, or the file of them.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] FileError),
    /// A file is there but does not hold what it should.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The teacher could not be reached, or stopped answering.
    #[error("teacher at {address}: {reason}")]
    Teacher {
        /// Where.
        address: String,
        /// What happened, and what to do.
        reason: String,
    },
    /// Teacher and student do not fit each other.
    #[error(
        "the teacher does not fit this run: {what}: the teacher has {teacher}, the student has {student}; {remedy}"
    )]
    Mismatch {
        /// Which property.
        what: &'static str,
        /// The teacher's value.
        teacher: String,
        /// The student's value.
        student: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A run that is to go on over something else than before.
    #[error("cannot resume: the {what} was {before} and is {now} now; {remedy}")]
    Resume {
        /// Which property.
        what: &'static str,
        /// At the checkpoint.
        before: String,
        /// Now.
        now: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A loss that cannot be computed, by its settings or by what the teacher sends.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The same, of one sequence: its sides do not fit.
    #[error("sequence {index}: {error}")]
    Sequence {
        /// Its place in the corpus, from 0.
        index: u64,
        /// What does not fit.
        error: LossError,
    },
    /// The stream broke a rule: a wrong index, a damaged frame, a digest that does not agree.
    #[error("block stream: {0}")]
    Stream(String),
    /// A parameter takes no part in the loss.
    #[error(
        "step {step}: {names} got {what} gradient; the graph is cut between them and the loss, so they would never learn"
    )]
    Gradient {
        /// Optimiser step, from 1.
        step: usize,
        /// Parameter names, shortened.
        names: String,
        /// `no` or `only a zero`.
        what: &'static str,
    },
    /// NaN or infinity before an update.
    #[error("step {step}: {what} is not finite; nothing was updated, and the batch is in {}", dump.display())]
    NotFinite {
        /// Optimiser step, from 1.
        step: usize,
        /// The loss part or the parameters concerned.
        what: String,
        /// Directory with the batch and the names.
        dump: PathBuf,
    },
    /// Somebody asked to stop before there was anything to keep.
    #[error("stopped {0}")]
    Stopped(&'static str),
    /// Training from scratch ran away.
    #[error(
        "step {step}: cross-entropy is {ce} and the gradient's norm {grad_norm}; nothing was updated or saved; lower --lr or raise \
         --warmup-ratio"
    )]
    Diverged {
        /// Optimiser step, from 1.
        step: usize,
        /// Cross-entropy of the step.
        ce: f64,
        /// Norm of the whole gradient.
        grad_norm: f64,
    },
    /// The student's weights or configuration.
    #[error("student: {0}")]
    Model(distill_model::Error),
    /// A model that is named, and is not here or cannot be fetched.
    #[error(transparent)]
    Hub(#[from] distill_hub::Error),
    /// The tokenizer's files or the corpus.
    #[error(transparent)]
    Text(#[from] distill_text::Error),
    /// A frame cannot be decoded.
    #[error(transparent)]
    Proto(#[from] distill_proto::Error),
    /// The tensor library.
    #[error("tensor: {0}")]
    Tensor(candle_core::Error),
    /// A safetensors file cannot be read or written.
    #[error("safetensors: {0}")]
    Safetensors(safetensors::SafeTensorError),
}

impl Error {
    /// For `map_err` on file operations: `fs::read(path).map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |reason| FileError::at(action, path)(reason).into()
    }

    /// Whether this is the answer to a request to stop, and no failure.
    pub fn is_stop(&self) -> bool {
        match self {
            Self::Stopped(_) => true,
            Self::Hub(error) => error.is_stop(),
            _ => false,
        }
    }

    /// Says which sequence of the corpus a loss could not be computed for, where its shape is why.
    #[must_use]
    pub(crate) fn of_sequence(self, index: u64) -> Self {
        match self {
            Self::Loss(error @ LossError::Shape { .. }) => Self::Sequence { index, error },
            other => other,
        }
    }

    /// For a file that does not hold what it should.
    pub fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

// As `#[from]` would, which makes a `source` besides.
impl From<distill_model::Error> for Error {
    fn from(error: distill_model::Error) -> Self {
        Self::Model(error)
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error)
    }
}

impl From<safetensors::SafeTensorError> for Error {
    fn from(error: safetensors::SafeTensorError) -> Self {
        Self::Safetensors(error)
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error as _, io};

    use super::*;

    #[test]
    fn a_shape_that_does_not_fit_is_told_with_its_sequence() {
        let shape = LossError::shape("positions", "1..=16384", 17_780);
        let told = Error::from(shape).of_sequence(12).to_string();
        assert_eq!(
            told,
            "sequence 12: positions: expected 1..=16384, found 17780"
        );
        let (what, position) = ("loss", 0);
        let of_the_run = Error::from(LossError::NonFinite { what, position }).of_sequence(12);
        assert!(matches!(of_the_run, Error::Loss(_)));
    }

    #[test]
    fn no_reason_is_said_twice() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let path = Path::new("some/file");
        let read = |path: &Path| std::fs::read(path).map(drop).unwrap_err();
        let errors: [Error; 5] = [
            Error::io("read", path)(read(path)),
            candle_core::Error::from(missing()).into(),
            LossError::from(candle_core::Error::from(missing())).into(),
            safetensors::SafeTensorError::IoError(missing()).into(),
            distill_model::Error::from(candle_core::Error::from(missing())).into(),
        ];
        for error in errors {
            let reason = match &error {
                Error::Io(error) => error.reason.to_string(),
                _ => missing().to_string(),
            };
            let message = error.to_string();
            assert_eq!(message.matches(&reason).count(), 1, "{message}");
            let cause = error.source().map(|cause| cause.to_string());
            assert!(
                !cause.is_some_and(|cause| message.contains(&cause)),
                "{message}"
            );
        }
    }
}
