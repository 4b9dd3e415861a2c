//! Provides the partial shard: frames in the order in which they came, kept across a restart until their shard is complete.

use std::collections::BTreeMap;

use distill_proto::{Fingerprint, Frame, FrameContext, FrameSummary, frame::HEADER_BYTES_MAX};

use super::{
    files::{Files, at_most},
    layout::ShardPlan,
};
use crate::{Result, plan::Entry};

/// Directory of partial shards.
pub const PARTIAL: &str = "partial";

/// Where the frames of an incomplete shard lie in its file.
#[derive(Debug, Clone, Default)]
pub struct Partial {
    /// Offset and bytes, by place in the shard.
    pub extents: BTreeMap<usize, (u64, usize)>,
    /// End of the last whole frame.
    pub end: u64,
}

/// Name of the file of a partial shard.
pub fn name(shard: u32) -> String {
    format!("{PARTIAL}/{shard:07}")
}

/// A shard's place and what its frames have to be.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    /// Plan that the frames belong to.
    pub plan: Fingerprint,
    /// Which shard.
    pub shard: ShardPlan,
    /// Its sequences.
    pub entries: &'a [Entry],
}

impl Expected<'_> {
    /// What the checksum of the frame at `position` covers beside its bytes.
    pub fn context(&self, position: usize) -> FrameContext {
        FrameContext {
            plan: self.plan,
            shard: self.shard.number,
            index: self.shard.first_index + position as u64,
        }
    }

    /// Checks the frame at `position` and that it is of the right sequence.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, position: usize, frame: &[u8]) -> std::result::Result<(), String> {
        let summary = Frame::check(frame, &self.context(position)).map_err(|e| e.to_string())?;
        let expected = self.entries.get(position).map(|entry| entry.id);
        if expected != Some(summary.sequence_id) {
            return Err(format!(
                "holds sequence {:016x} instead of {:016x}",
                summary.sequence_id,
                expected.unwrap_or_default()
            ));
        }
        Ok(())
    }

    fn position(&self, summary: &FrameSummary) -> Option<usize> {
        let position = summary.index.checked_sub(self.shard.first_index)?;
        let position = usize::try_from(position).ok()?;
        (position < self.shard.count).then_some(position)
    }
}

impl Partial {
    /// Finds the whole frames in what is left of a partial shard; the first one that is not ends them.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub fn scan(files: &dyn Files, expected: &Expected<'_>) -> Result<Option<Self>> {
        let name = name(expected.shard.number);
        let Some(length) = files.length(&name)? else {
            return Ok(None);
        };
        let mut partial = Self::default();
        while partial.end < length {
            let left = length - partial.end;
            let head = at_most(left, HEADER_BYTES_MAX);
            let head = files.read(&name, partial.end, head)?;
            let Ok(summary) = Frame::peek(&head) else {
                break;
            };
            let Some(position) = expected.position(&summary) else {
                break;
            };
            if summary.bytes as u64 > left {
                break;
            }
            let frame = files.read(&name, partial.end, summary.bytes)?;
            if expected.check(position, &frame).is_err() {
                break;
            }
            partial.add(position, frame.len());
        }
        Ok(Some(partial))
    }

    /// Counts a frame that was written at the end.
    pub fn add(&mut self, position: usize, bytes: usize) {
        let extent = (self.end, bytes);
        self.extents.entry(position).or_insert(extent);
        self.end += bytes as u64;
    }
}
