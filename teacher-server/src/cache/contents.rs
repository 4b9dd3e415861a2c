//! Provides the contents of a cache as its plan says they are: the headers and frames of sealed shards, checked.

use std::{io::ErrorKind, sync::Arc};

use distill_proto::{Fingerprint, ShardHeader, shard};

use super::{
    files::{Files, at_most},
    layout::ShardPlan,
    partial::Expected,
    storage::Storage,
};
use crate::{Error, Result, plan::Entry};

/// Directory of sealed shards.
pub const SHARDS: &str = "shards";

/// Name of a sealed shard.
pub fn sealed_name(shard: u32) -> String {
    format!("{SHARDS}/{shard:07}")
}

/// The files of a cache with the plan that they follow.
#[derive(Clone)]
pub struct Contents {
    /// Partial shards.
    pub files: Arc<dyn Files>,
    /// Sealed shards.
    pub storage: Storage,
    /// Plan that all frames belong to.
    pub plan: Fingerprint,
    /// In order; the number of a shard is its place.
    pub shards: Arc<[ShardPlan]>,
    /// All sequences in order.
    pub entries: Arc<[Entry]>,
}

impl Contents {
    /// What shard `number` has to be.
    pub fn expected(&self, shard: ShardPlan) -> Expected<'_> {
        let first = usize::try_from(shard.first_index).unwrap_or(usize::MAX);
        let range = first..first.saturating_add(shard.count);
        Expected {
            plan: self.plan,
            shard,
            entries: self.entries.get(range).unwrap_or_default(),
        }
    }

    /// The header of a sealed shard, checked against the plan; `None` where it is not sealed.
    ///
    /// # Errors
    /// `Damaged` naming the byte; `Io`.
    pub fn sealed_header(&self, shard: ShardPlan) -> Result<Option<ShardHeader>> {
        self.read_anew(shard.number, || self.read_sealed_header(shard))
    }

    fn read_sealed_header(&self, shard: ShardPlan) -> Result<Option<ShardHeader>> {
        let name = sealed_name(shard.number);
        let Some(length) = self.storage.length(&name)? else {
            return Ok(None);
        };
        let damaged = |error: distill_proto::Error| {
            let (offset, reason) = match error {
                distill_proto::Error::Shard { offset, reason, .. } => (offset, reason),
                other => (0, other.to_string()),
            };
            self.damaged(shard.number, offset, reason)
        };
        let fixed = at_most(length, shard::FIXED_BYTES);
        let read = |bytes| {
            let read = self.storage.read(&name, 0, bytes);
            read.map_err(|error| self.damaged_if_cut(shard.number, 0, error))
        };
        let fixed = read(fixed)?;
        let bytes = ShardHeader::header_bytes(&fixed, shard.number, length).map_err(damaged)?;
        let bytes = read(bytes)?;
        let header =
            ShardHeader::decode(&bytes, self.plan, shard.number, length).map_err(damaged)?;
        let ids = header.entries.iter().map(|entry| entry.sequence_id);
        let planned = self.expected(shard).entries.iter().map(|entry| entry.id);
        if header.first_index != shard.first_index || !ids.eq(planned) {
            let reason = "holds other sequences than the plan says".to_owned();
            return Err(self.damaged(shard.number, 16, reason));
        }
        Ok(Some(header))
    }

    /// The frame at `position` of a sealed shard, checked.
    ///
    /// # Errors
    /// `Damaged` naming the byte; `Io`.
    pub fn sealed_frame(&self, header: &ShardHeader, position: usize) -> Result<Vec<u8>> {
        self.read_anew(header.number, || self.read_sealed_frame(header, position))
    }

    fn read_anew<T>(&self, shard: u32, read: impl Fn() -> Result<T>) -> Result<T> {
        let is_damaged = |error: &Error| matches!(error, Error::Damaged { .. });
        self.storage
            .read_anew(&sealed_name(shard), is_damaged, read)
    }

    fn read_sealed_frame(&self, header: &ShardHeader, position: usize) -> Result<Vec<u8>> {
        let number = header.number;
        let none = || Error::Internal(format!("shard {number} has no frame {position}"));
        let (offset, bytes) = header.extent(position).ok_or_else(none)?;
        let frame = self.storage.read(&sealed_name(number), offset, bytes);
        let frame = frame.map_err(|error| self.damaged_if_cut(number, offset, error))?;
        let shard = self.shards.get(number as usize).copied().ok_or_else(none)?;
        let checked = self.expected(shard).check(position, &frame);
        checked.map_err(|reason| self.damaged(number, offset, reason))?;
        Ok(frame)
    }

    /// What became of a shard that was whole when it was found, and has lost its end, or is gone.
    fn damaged_if_cut(&self, shard: u32, offset: u64, error: Error) -> Error {
        match error.io_kind() {
            Some(ErrorKind::UnexpectedEof | ErrorKind::NotFound) => {
                self.damaged(shard, offset, "the file was cut or removed".to_owned())
            }
            _ => error,
        }
    }

    fn damaged(&self, shard: u32, offset: u64, reason: String) -> Error {
        Error::Damaged {
            path: self.storage.path(&sealed_name(shard)),
            shard,
            offset,
            reason,
        }
    }
}
