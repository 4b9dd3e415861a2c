//! Provides the count of sequences whose record gives the student a view of its own.

use distill_proto::{FORMAT_VERSION, FORMAT_VERSION_PAIRS, View, v1};
use serde::Serialize;

use super::Entry;

/// Sequences with two views.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pairs {
    /// How many there are.
    pub sequences: u64,
    /// Those whose views have no bytes in common.
    pub without_shared: u64,
    /// Bytes of the teacher's text that both views have.
    pub shared_bytes: u64,
}

impl Pairs {
    /// Counts them.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let shared = entries.into_iter().filter_map(|entry| entry.shared_bytes);
        shared.fold(Self::default(), |all, bytes| Self {
            sequences: all.sequences + 1,
            without_shared: all.without_shared + u64::from(bytes == 0),
            shared_bytes: all.shared_bytes + u64::from(bytes),
        })
    }

    /// Says so in a handshake, with the version that frames with a view have.
    pub fn tell(self, info: &mut v1::GetServerInfoResponse) {
        info.paired_sequences = self.sequences;
        info.paired_without_shared = self.without_shared;
        info.format_version = if self.sequences == 0 {
            FORMAT_VERSION
        } else {
            FORMAT_VERSION_PAIRS
        };
    }
}

/// Bytes of the teacher's text that the student has too.
pub(super) fn shared_bytes(view: &View) -> u32 {
    let bytes = view
        .shared
        .iter()
        .map(|link| link.teacher.1 - link.teacher.0);
    bytes.fold(0, u32::saturating_add)
}
