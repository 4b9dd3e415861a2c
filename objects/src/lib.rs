/*! Object storage: caches, corpora and checkpoints at `s3://`, `gs://`, `az://` and `file://` addresses.

```text
 "s3://bucket/prefix" ──> Store: list, length, read, put_if_absent, remove  ──> object_store, on a runtime of its own
                            │ read through
                            v
                          Copies: blocks of objects on this disk, the least recently used go first
 fetch: the objects below an address as files of this machine, for readers of files; transfer: a file to an object and back
```

Everything blocks. Errors are [`distill_program::FileError`] and name the object by its address, so whoever handles files handles
objects. Credentials come from where each service's own tools look for them (`AWS_*`, web identity, the instance's role;
`GOOGLE_*`; `AZURE_*`) and are never shown; an address with a user or a password in it is refused.
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

mod address;
mod copies;
mod fetch;
mod folder;
mod store;
mod transfer;

pub use address::is_remote;
pub use copies::Copies;
pub use fetch::fetched;
pub use folder::{folder_of, short_digest};
pub use store::Store;

/// What the functions here give.
pub type Result<T> = std::result::Result<T, distill_program::FileError>;
