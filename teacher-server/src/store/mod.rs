//! Provides the place where computed frames are kept, so that every later reader is answered without the model.

mod digest;
mod spool;

use bytes::Bytes;

use crate::Result;
pub use digest::OrderDigest;
pub use spool::Spool;

/// A frame as it is kept and streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlock {
    /// Shard that the frame's checksum names; 0 on a live stream.
    pub shard: u32,
    /// Position in the plan's order.
    pub index: u64,
    /// The frame, `FORMAT.md`.
    pub frame: Bytes,
}

/// Keeps frames by their position in the plan's order. One writer, many readers.
pub trait BlockStore: Send + Sync {
    /// Whether the frame at `index` is kept; never waits for a disk.
    fn contains(&self, index: u64) -> bool;

    /// The frame at `index`, or `None` where it is not kept yet.
    ///
    /// # Errors
    /// `Io` naming the place.
    fn get(&self, index: u64) -> Result<Option<StoredBlock>>;

    /// Shard to name in the checksum of the frame at `index`.
    fn shard_of(&self, index: u64) -> u32;

    /// Keeps a frame; one that is already there stays.
    ///
    /// # Errors
    /// `Io` naming the place; the store is as before then.
    fn put(&self, index: u64, frame: &[u8]) -> Result<()>;

    /// Returns once what was put would survive a power loss, where the store is one that would at all.
    ///
    /// # Errors
    /// `Io` naming the place.
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
