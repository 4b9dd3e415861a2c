//! Provides the frame: one sequence's text, tokens, masks and rows as checksummed bytes.

use crate::{Result, block::Rows, fingerprint::Fingerprint};

/// One sequence with everything a trainer needs about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Content-derived id of the sequence, unique within a plan.
    pub sequence_id: u64,
    /// Index in the plan's order.
    pub index: u64,
    /// blake3 of `text`.
    pub text_digest: Fingerprint,
    /// The window's text; byte offsets point into it.
    pub text: String,
    /// T token ids.
    pub token_ids: Vec<u32>,
    /// Byte range of every token in `text`; `(0, 0)` for special tokens.
    pub byte_offsets: Vec<(u32, u32)>,
    /// T flags; true where the token is a target. The first token never is.
    pub target_mask: Vec<bool>,
    /// One row for every target.
    pub rows: Rows,
}

/// What the checksum covers beside the bytes, so that a swapped or renamed frame is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameContext {
    /// Digest of the plan the frame belongs to.
    pub plan: Fingerprint,
    /// Shard number; 0 on a live stream.
    pub shard: u32,
    /// Index in the plan's order.
    pub index: u64,
}

impl Frame {
    /// Positions t of the targets, increasing; row i describes the token at `target_positions()[i]`.
    pub fn target_positions(&self) -> Vec<usize> {
        let flags = self.target_mask.iter().enumerate();
        flags.filter_map(|(t, &target)| target.then_some(t)).collect()
    }

    /// Serialises the frame.
    pub fn encode(&self, context: &FrameContext) -> Result<Vec<u8>> {
        let _ = context;
        Err(crate::Error::Todo)
    }

    /// Reads a frame, checking every length, id and the checksum against `context`.
    pub fn decode(bytes: &[u8], context: &FrameContext) -> Result<Frame> {
        let _ = (bytes, context);
        Err(crate::Error::Todo)
    }
}
