/*! The trainer's side of the contract: reach the teacher, agree with it, and take its frames in order.

```text
 connect ──> handshake ──> basis (once, if the loss needs it)
                  └──────> stream: receive ─> check index ─> decode ─> bounded queue ─> training loop
                              └── connection lost: back off, wait until ready, go on after the last cursor
```
*/

mod basis;
mod connect;
mod handshake;
mod retry;
mod score;
mod stream;

pub use basis::fetch_basis;
pub use connect::{ConnectOptions, Teacher};
pub use handshake::ServerInfo;
pub use score::{ScoredSequence, SequenceToScore};
pub use stream::{BlockStream, Position, Received, StreamOptions};

#[cfg(test)]
mod mock;
