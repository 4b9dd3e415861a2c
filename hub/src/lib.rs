/*! Models by name: `org/name` as a directory of the hub's own cache, fetched, verified and resumable; and the way back, a push.

```text
 "org/name@revision" ──> name::Reference ──┐
 HF_HOME, HF_TOKEN... ─> Environment ──────┤
                                           v
   a path that exists <── resolve ──> cache::RepoCache: models--org--name/{blobs,refs,snapshots}
                                           │ what is missing
                                           v
             client: revision, HEAD, GET with Range ──> transfer: <etag>.incomplete ──> verify ──> blob, link, ref
                         selection: which files a model needs
```

[`push()`] is drawn in its module.

The cache is the one that `huggingface_hub` reads and writes, with the same names, locks and relative links, so that both
programs and Python share one copy. The `hf-hub` crate (1.0) is not used: what it fetches over HTTP is not compared with a digest and starts
over when it is interrupted, and it brings an asynchronous client and Xet's stack with it.

A file is a blob only once it is whole, on disk and has the digest that its name promises; what is interrupted stays
behind as `<etag>.incomplete` and is continued. Nothing here may make a program panic, whatever the server answers; its
names are checked before they become paths.
*/
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)
)]

mod environment;
mod error;
pub mod limits;
mod name;

mod selection;

mod cache;
mod client;
mod fetch;
mod progress;
mod transfer;
mod verify;

mod push;

#[cfg(any(test, feature = "stand-in"))]
pub mod stand_in;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use environment::{Environment, Token};
pub use error::{Error, Result};
pub use name::Reference;
pub use push::{Content, Push, Pushed, Upload, push, push_in};
pub use selection::Wanted;

/// What is looked for, and who may end the search.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Which of a repository's files are needed.
    pub wanted: Wanted,
    /// Asked between reads; true ends a transfer, which a later one continues.
    pub stopped: &'a dyn Fn() -> bool,
}

impl<'a> Options<'a> {
    /// Everything that a model needs, until `stopped` says otherwise.
    pub fn model(stopped: &'a dyn Fn() -> bool) -> Self {
        let wanted = Wanted::Model;
        Self { wanted, stopped }
    }
}

/// Where something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The directory, or the file where a file was named or the repository holds one GGUF model only.
    pub path: PathBuf,
    /// The name it was found by; `None` for a path that was given as such.
    pub reference: Option<Reference>,
}

/// Finds what the user typed: a path that exists, or else a repository of the hub, which is fetched as far as the cache
/// lacks it. Shows progress on standard error. Blocks; call it outside of an async runtime.
///
/// # Errors
/// Something that is neither; a repository that does not exist or may not be read; a network, a server or a disk that
/// does not do its part.
pub fn resolve(given: &Path, options: &Options<'_>) -> Result<Located> {
    if given.exists() {
        return Ok(path_as_given(given));
    }
    // A broken setting of the hub must not stand in the way of a path.
    let reference = reference(given)?;
    resolve_reference(reference, &Environment::from_env()?, options)
}

/// As [`resolve`], with another environment than the process's.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_in(
    given: &Path,
    environment: &Environment,
    options: &Options<'_>,
) -> Result<Located> {
    if given.exists() {
        return Ok(path_as_given(given));
    }
    resolve_reference(reference(given)?, environment, options)
}

fn path_as_given(given: &Path) -> Located {
    Located {
        path: given.to_owned(),
        reference: None,
    }
}

fn reference(given: &Path) -> Result<Reference> {
    given
        .to_str()
        .and_then(Reference::parse)
        .ok_or_else(|| Error::Neither {
            given: given.to_owned(),
        })
}

fn resolve_reference(
    reference: Reference,
    environment: &Environment,
    options: &Options<'_>,
) -> Result<Located> {
    Ok(Located {
        path: fetch::fetch(&reference, environment, options)?,
        reference: Some(reference),
    })
}
