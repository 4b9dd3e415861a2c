//! Provides the error of this crate: what can go wrong between a corpus and a client.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Device;
use distill_program::{FileError, settings};
use distill_proto::Fingerprint;

/// What can go wrong between a corpus and a client.
///
/// Messages carry their causes themselves. So no variant has a `source`: what prints a whole chain would say a reason twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot be followed.
    #[error("--{key}: {reason}")]
    Config {
        /// The flag, without its dashes.
        key: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A configuration file that cannot be read as one.
    #[error("{}: {reason}", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The operating system refused something about a file or an address.
    #[error("{error}{}", hint(&error.reason, *elsewhere))]
    Io {
        /// What was tried, on what, and what the system said.
        error: FileError,
        /// The flag that names another place, where there is one.
        elsewhere: Option<&'static str>,
    },
    /// A model that is named, and is not here or cannot be fetched.
    #[error("--model: {0}")]
    Hub(distill_hub::Error),
    /// Tokenizer, template or corpus.
    #[error(transparent)]
    Text(#[from] distill_text::Error),
    /// Weights, configuration or forward pass of the model.
    #[error(transparent)]
    Model(#[from] distill_model::Error),
    /// A tensor operation outside the model.
    #[error("tensor operation: {0}")]
    Tensor(candle_core::Error),
    /// A block that cannot be written, or a cursor that cannot be read.
    #[error(transparent)]
    Proto(#[from] distill_proto::Error),
    /// The gRPC transport.
    #[error("gRPC transport: {0}")]
    Transport(String),
    /// Model and tokenizer do not belong together.
    #[error("{0}")]
    Mismatch(String),
    /// The model put out something that is no number.
    #[error(
        "the teacher's logits for token {position} of sequence {sequence:016x} hold NaN or infinity; try --dtype f32, or check the weights"
    )]
    NotFinite {
        /// Id of the sequence.
        sequence: u64,
        /// Token that the row describes.
        position: usize,
    },
    /// A state that half precision cannot hold.
    #[error(
        "the state of sequence {sequence:016x} reaches {largest}, beyond the 65504 of half precision; start the server with --state {remedy}"
    )]
    StateOverflow {
        /// Id of the sequence.
        sequence: u64,
        /// Largest magnitude.
        largest: f32,
        /// The same setting in a coding that can.
        remedy: String,
    },
    /// What stopped the production of a block, told to everyone who waits for it.
    #[error(transparent)]
    Production(Arc<Error>),
    /// A client that agreed to something else.
    #[error("{what} fingerprint is {served} here, but the client asked for {requested}; {remedy}")]
    FingerprintMismatch {
        /// `plan` or `tokenizer`.
        what: &'static str,
        /// What this server has.
        served: Fingerprint,
        /// What the client sent, cut to a printable length.
        requested: String,
        /// What to do.
        remedy: &'static str,
    },
    /// No such sequence in the plan.
    #[error(
        "sequence id {id} is not in plan {plan}; ask for ids of frames that this plan streamed"
    )]
    UnknownSequence {
        /// The id asked for.
        id: u64,
        /// The plan served.
        plan: Fingerprint,
    },
    /// A request that cannot be answered as it stands.
    #[error("{field}: {reason}")]
    Request {
        /// Field of the message.
        field: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The basis was asked for, but the plan stores no `state`.
    #[error(
        "this plan stores no state, so there is no basis; start the server with --state exact or sketch:R"
    )]
    NoState,
    /// The basis was asked for, but `state` is not the last hidden state.
    #[error(
        "this plan stores the outputs of the layers {layers:?}, which no basis takes to logits; start the server with --state exact or sketch:R for one"
    )]
    NoBasis {
        /// Which.
        layers: Vec<u32>,
    },
    /// More of something at a time than the server allows.
    #[error("{limit} {what} are open already; try again when one has ended")]
    Busy {
        /// What there is too much of.
        what: &'static str,
        /// The named limit.
        limit: usize,
    },
    /// A batch of which only frames are at hand.
    #[error(
        "frame {index} is missing and the corpus does not hold its sequence; start with the --corpus that the cache was made from"
    )]
    NoText {
        /// Place in the plan's order.
        index: u64,
    },
    /// The model was needed where a cache is served without one.
    #[error(
        "this server serves a cache and has no model in memory; to compute what an incomplete cache lacks, give it --model and --corpus, \
         and to score other text or to have prompts answered, start a server without --cache"
    )]
    NoModel,
    /// A prompt for a teacher that leaves the device to trainers.
    #[error(
        "this server lends its device to trainers, and an answer would keep it from them; ask a server that runs with --vram-mode resident"
    )]
    Lends,
    /// A prompt for a teacher that only runs over whole sequences.
    #[error(
        "answers of {family} are not supported, whose passes know no earlier keys and values; ask a teacher of another family"
    )]
    NoAnswers {
        /// The model's family.
        family: &'static str,
    },
    /// A conversation for a teacher that knows none.
    #[error(
        "the teacher's tokenizer has no chat template, so it cannot be talked to; send a text to be continued, or ask an instruction-tuned teacher"
    )]
    NoChatTemplate,
    /// An answer that would take more of the card than the capture does.
    #[error(
        "the answer needs {} of the card beside the weights, more than the {} of a batch, which is what is counted on; ask for fewer tokens or shorten the prompt, or start the server with a larger --batch-size or --seq-len", mib(*needed_bytes), mib(*granted_bytes)
    )]
    AnswerTooLarge {
        /// What keys, values and the prompt's pass take.
        needed_bytes: u64,
        /// What a batch takes.
        granted_bytes: u64,
    },
    /// The teacher was needed at once while a trainer has the device.
    #[error(
        "the device is lent to {holder}, so the teacher is not in memory; release it (free it, then ReleaseDevice), ask again, and take it back with HoldDevice"
    )]
    DeviceHeld {
        /// What the trainer calls itself.
        holder: String,
    },
    /// A trainer that counts on a lease which is over.
    #[error(
        "no lease of this epoch and secret goes on: it is over and the device has been used since, or it is another's; free what is on the device and ask anew, without an epoch"
    )]
    StaleEpoch,
    /// A trainer of before the secrets of grants.
    #[error(
        "this trainer does not name the secret of its grant, so it is older than this server, which lends no device without one; use teacher-server and student-trainer of one release"
    )]
    NoSecret,
    /// A trainer that was asked for the device and keeps it.
    #[error(
        "{holder} has the device and has not yielded for {seconds} s since it was asked to; it is not taken away from a trainer whose connection lives: let it go on, or end it; --yield-timeout-s waits longer"
    )]
    HolderHung {
        /// What the trainer calls itself.
        holder: String,
        /// How long others were patient.
        seconds: u64,
    },
    /// The device stays too full for the teacher.
    #[error(
        "the teacher needs {} of the device's memory and {} of {} are free, though no trainer has the lease; end what else uses it, or lower the need with a smaller --dtype, a 4-bit checkpoint, --batch-size or --chunk-rows", gib(*needed_bytes), gib(*free_bytes), gib(*total_bytes)
    )]
    NoRoom {
        /// What the teacher takes.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
        /// What the device has.
        total_bytes: u64,
    },
    /// Something about a cache that the user has to decide.
    #[error("cache {}: {reason}", path.display())]
    Cache {
        /// The cache's directory or the file in it.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A frame that is not what was written.
    #[error(
        "cache {}: shard {shard}, byte {offset}: {reason}; `teacher-server verify --repair` computes it anew", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Number of the shard.
        shard: u32,
        /// Where the frame begins in the file.
        offset: u64,
        /// What does not fit.
        reason: String,
    },
    /// The device was asked for where it is not lent.
    #[error(
        "this server has no device to lend: its model stays in memory, or it serves a cache without one; train without HoldDevice, or start it with --vram-mode swap"
    )]
    NothingToLend,
    /// The weights are not in yet.
    #[error("the teacher is still loading; wait until the health service says SERVING")]
    Loading,
    /// The server was told to stop.
    #[error(
        "the server is shutting down; reconnect with the last cursor when it is back, nothing is lost"
    )]
    ShuttingDown,
    /// A thread of the server died.
    #[error("internal: {0}")]
    Internal(String),
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A setting that cannot be followed, by its flag.
    pub(crate) fn config(key: &str, reason: impl Into<String>) -> Self {
        Self::Config {
            key: key.to_owned(),
            reason: reason.into(),
        }
    }

    /// For `map_err` on file operations.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |reason| FileError::at(action, &path)(reason).into()
    }

    /// As [`Error::io`], for a file of the spool.
    pub(crate) fn spool(
        action: &'static str,
        directory: &Path,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = directory.to_owned();
        move |reason| Self::Io {
            error: FileError::at(action, &path)(reason),
            elsewhere: Some("--spool-dir"),
        }
    }

    /// What the operating system said, where it is about that.
    pub(crate) fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { error, .. } => Some(error.reason.kind()),
            _ => None,
        }
    }

    /// Something about a cache that the user has to decide.
    pub(crate) fn cache(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        let (path, reason) = (path.into(), reason.into());
        Self::Cache { path, reason }
    }

    /// For `map_err` and plain returns about one field of a request.
    pub(crate) fn request(field: impl Into<String>, reason: impl Into<String>) -> Self {
        let (field, reason) = (field.into(), reason.into());
        Self::Request { field, reason }
    }

    /// An error of work on the device, with what to do where it had no room for it.
    pub(crate) fn explained(self, device: &Device) -> Self {
        let remedy = "lower --batch-size, --seq-len or --chunk-rows";
        match self {
            Self::Tensor(error) | Self::Model(distill_model::Error::Candle(error)) => {
                distill_model::explained(error, device, "the teacher", remedy).into()
            }
            other => other,
        }
    }

    /// Whether asking again may help: a full disk can be emptied, NaN in a model stays.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Io { .. } | Self::ShuttingDown | Self::Loading => true,
            Self::Production(inner) => inner.is_transient(),
            _ => false,
        }
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn hint(reason: &io::Error, elsewhere: Option<&str>) -> String {
    match (reason.kind(), elsewhere) {
        (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, Some(flag)) => {
            format!("; free some space or name another place with {flag}")
        }
        (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, None) => {
            "; free some space, then run the same command again".to_owned()
        }
        _ => String::new(),
    }
}

impl From<settings::Error> for Error {
    fn from(error: settings::Error) -> Self {
        match error {
            settings::Error::Key { path, reason } => Self::config(&path.replace('_', "-"), reason),
            settings::Error::File { file, reason } => Self::ConfigFile { path: file, reason },
            settings::Error::Io(error) => error.into(),
            other => Self::Internal(other.to_string()),
        }
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        let elsewhere = None;
        Self::Io { error, elsewhere }
    }
}

// As `#[from]` would, which makes a `source` besides.
impl From<distill_hub::Error> for Error {
    fn from(error: distill_hub::Error) -> Self {
        Self::Hub(error)
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error)
    }
}

impl From<tonic::transport::Error> for Error {
    /// tonic says "transport error", and the reason only to who asks further.
    fn from(error: tonic::transport::Error) -> Self {
        let mut causes = vec![error.to_string()];
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            let text = error.to_string();
            if causes.last().is_none_or(|last| !last.contains(&text)) {
                causes.push(text);
            }
            cause = error.source();
        }
        Self::Transport(causes.join(": "))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn no_reason_is_said_twice() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let path = Path::new("some/file");
        let errors: [Error; 4] = [
            Error::io("read", path)(missing()),
            Error::spool("write", path)(missing()),
            candle_core::Error::from(missing()).into(),
            Error::Production(Arc::new(Error::io("read", path)(missing()))),
        ];
        for error in errors {
            let message = error.to_string();
            let reason = missing().to_string();
            assert_eq!(message.matches(&reason).count(), 1, "{message}");
            assert!(error.source().is_none(), "{message}");
            // As the program prints it.
            let chain = format!("{:#}", anyhow::Error::from(error));
            assert_eq!(chain, message);
        }
    }

    #[test]
    fn a_full_disk_names_a_flag_only_where_it_helps() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let message = |error: Error| error.to_string();
        let spool = message(Error::spool("write the spool file in", Path::new("/tmp"))(
            full(),
        ));
        assert!(spool.contains("--spool-dir"), "{spool}");
        // `precompute` and `serve --cache` have no spool.
        let cache = message(Error::io("write", Path::new("cache/partial/00001"))(full()));
        assert!(
            cache.contains("free some space") && !cache.contains("--"),
            "{cache}"
        );
    }
}
