//! Provides the error of this crate: what could not be found or fetched, from where, and what to do.

use std::path::PathBuf;

use distill_program::FileError;

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What can keep a model from being found.
///
/// Messages carry their causes themselves. So no variant has a `source`: what prints a whole chain would say a reason twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was typed is no path and no name.
    #[error(
        "{}: there is no such file or directory, and it is no name on the hub either; a name reads org/name, org/name@revision \
         or org/name/file.gguf",
        given.display()
    )]
    Neither {
        /// As typed.
        given: PathBuf,
    },
    /// An environment variable has no meaning.
    #[error("{variable}: {reason}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The hub does not have it.
    #[error(
        "{reference}: there is no such path here, and {endpoint} has no such {what}; check the spelling, on the hub and of the path"
    )]
    Missing {
        /// As typed.
        reference: String,
        /// Which server was asked.
        endpoint: String,
        /// `repository`, or the revision or file of it.
        what: String,
    },
    /// The hub does not give it to this user.
    #[error("{reference}: {endpoint} answers {status}{said}: {remedy}")]
    Refused {
        /// As typed.
        reference: String,
        /// Which server was asked.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// The server's own words, in brackets.
        said: String,
        /// What to do.
        remedy: String,
    },
    /// Offline, and the cache does not have everything.
    #[error(
        "{reference}: HF_HUB_OFFLINE is set, and {} lacks {missing}; fetch it once without HF_HUB_OFFLINE, or point HF_HOME or \
         HF_HUB_CACHE to a cache that has it",
        directory.display()
    )]
    Offline {
        /// As typed.
        reference: String,
        /// Which file is not there.
        missing: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The repository holds nothing that can be used.
    #[error("{reference} has {reason}")]
    Unusable {
        /// As typed, or a file.
        reference: String,
        /// What is there, and what would be needed.
        reason: String,
    },
    /// The network failed, or the server did.
    #[error("{url}: {reason}")]
    Network {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The hub could not be asked about a name that may have been meant as a path.
    #[error(
        "{reference}: there is no such path here, the cache does not have it, and the hub cannot be asked: {reason}; check the \
         spelling of a path, or the network and HF_ENDPOINT for a name"
    )]
    Unreachable {
        /// As typed.
        reference: String,
        /// Which address, and what happened.
        reason: String,
    },
    /// The server broke the hub's protocol.
    #[error("{url}: {reason}; is HF_ENDPOINT the address of a hub?")]
    Protocol {
        /// What was asked for.
        url: String,
        /// What was expected.
        reason: String,
    },
    /// What arrived is not what the hub promised.
    #[error(
        "{url}: what arrived has the digest {found} where the hub promises {expected}; it was thrown away, run again to fetch it \
         anew (a proxy or mirror may be changing files)"
    )]
    Checksum {
        /// What was fetched.
        url: String,
        /// The hub's digest.
        expected: String,
        /// The digest of what arrived.
        found: String,
    },
    /// No room.
    #[error(
        "{}: the disk is full, {bytes} bytes are still missing; make room or point HF_HOME to another disk, then run again: \
         what has arrived is kept",
        path.display()
    )]
    DiskFull {
        /// What was written.
        path: PathBuf,
        /// Bytes that the file still needs.
        bytes: u64,
    },
    /// Nobody to push as.
    #[error(
        "nothing can be pushed without a token; make one that may write at {endpoint}/settings/tokens, and put it into {place}"
    )]
    NoToken {
        /// Which server would be asked.
        endpoint: String,
        /// Where a token is looked for.
        place: String,
    },
    /// Pushing while offline.
    #[error("HF_HUB_OFFLINE is set, and pushing needs the hub; unset it")]
    PushOffline,
    /// A repository that everybody sees, where a private one was asked for.
    #[error(
        "{repo} is there already, and public; make it private at {endpoint}/{repo}/settings, or push to another name"
    )]
    Public {
        /// `org/name`.
        repo: String,
        /// Which server was asked.
        endpoint: String,
    },
    /// Someone asked to stop an upload.
    #[error(
        "stopped before the commit: nothing has changed in {repo}, and what storage has by now is not sent again"
    )]
    Uncommitted {
        /// `org/name`.
        repo: String,
    },
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] FileError),
    /// Someone asked to stop.
    #[error("stopped; what has arrived is kept, and the next run continues it")]
    Stopped,
}

impl Error {
    /// Whether this is the answer to a request to stop, and no failure.
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Stopped | Self::Uncommitted { .. })
    }

    /// Whether the hub as a whole could not be asked, so that what the cache has may serve.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Network { .. })
    }
}
