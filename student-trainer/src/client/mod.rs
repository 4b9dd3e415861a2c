/*! The trainer's side of the contract: reach the teacher, agree with it, and take its frames in order.

```text
 connect ──> handshake ──> basis (once, if the loss needs it)
                  ├──────> vocabulary (once, if the student has another one)
                  ├──────> generate: the teacher's own answers to prompts
                  ├──────> lease: whose the device is, where teacher and student share one
                  └──────> stream: receive ─> check index ─> decode ─> bounded queue ─> training loop
                              └── connection lost: back off, wait until ready, go on after the last cursor
```
*/
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

mod absence;
mod basis;
mod checks;
mod connect;
mod generate;
mod handshake;
mod lease;
mod retry;
mod score;
mod stream;
mod vocabulary;

pub use basis::fetch_basis;
pub use connect::{ConnectOptions, Teacher};
pub use generate::{AnswerEvent, AnswerStream};
pub use handshake::{ServerInfo, Vocabularies};
pub use lease::{DeviceLease, holder_name};
pub use score::{SequenceToScore, scored};
pub use stream::{Arrival, BlockStream, Position, Received, StreamOptions};
pub use vocabulary::fetch_vocabulary;

use crate::{Error, Result};

/// The runtime for the network: one thread, beside the blocking ones that decode.
///
/// # Errors
/// The system refuses a thread.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| Error::Config(format!("the network runtime cannot start: {e}")))
}

#[cfg(test)]
mod claims_tests;
#[cfg(test)]
mod lies_tests;
#[cfg(test)]
pub(crate) mod mock;
