/*! The contract between a teacher and its students: schema, block, frame, fingerprints and limits.

```text
 teacher logits row ──> block::Rows ──> frame::encode ──┬──> gRPC Block.frame ──┬──> frame::decode ──> block::Rows
 token ids, mask, text ─────────────────┘               └──> shard file ────────┘
```

One layout serves the wire and the disk (see `FORMAT.md`); there is no candle in this crate. Bytes from a peer or a
file never panic here: every length is checked against a named limit before anything is allocated.
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

pub mod block;
pub mod cursor;
mod error;
pub mod fingerprint;
pub mod frame;
mod left_out;
pub mod limits;
mod numbers;
pub mod shard;
mod view;

pub use block::{Estimator, PADDING_COUNT, Rows, State, StateCoding, StateKind, ValueCoding};
pub use cursor::Cursor;
pub use error::{Error, Result};
pub use fingerprint::Fingerprint;
pub use frame::{Frame, FrameContext, FrameSummary};
pub use left_out::LeftOut;
pub use shard::{ShardEntry, ShardHeader};
pub use view::{FieldRange, Link, View};

/// The generated gRPC client, server and messages of `distill.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]
    tonic::include_proto!("distill.v1");
    /// The schema's descriptor set, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/distill_descriptor.bin"));
}

/// Version of a frame without a view, and of all that one plan's frames have in common.
pub const FORMAT_VERSION: u32 = 2;
/// Version of a frame with the student's view in it: what a corpus of pairs needs a trainer to read.
pub const FORMAT_VERSION_PAIRS: u32 = 3;
