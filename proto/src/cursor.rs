//! Provides the opaque cursor of `StreamBlocks`: plan and next index.

use crate::{Error, Fingerprint, Result};

/// Where a stream goes on. Bytes: plan digest (32), next index (u64, little-endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Plan the cursor belongs to.
    pub plan: Fingerprint,
    /// Index of the next frame.
    pub next: u64,
}

impl Cursor {
    /// The bytes handed to the client.
    pub fn encode(&self) -> Vec<u8> {
        [self.plan.0.as_slice(), &self.next.to_le_bytes()].concat()
    }

    /// Reads what a client handed back; empty means the start of `plan`.
    pub fn decode(bytes: &[u8], plan: Fingerprint) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self { plan, next: 0 });
        }
        let (digest, next) = bytes
            .split_first_chunk::<32>()
            .ok_or(Error::Cursor("too short"))?;
        let next = next.try_into().map_err(|_| Error::Cursor("wrong length"))?;
        let cursor = Self {
            plan: Fingerprint(*digest),
            next: u64::from_le_bytes(next),
        };
        if cursor.plan == plan {
            Ok(cursor)
        } else {
            Err(Error::Cursor("another plan"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_what_is_not_its_own() {
        let plan = Fingerprint::of(b"plan");
        let cursor = Cursor { plan, next: 17 };
        assert_eq!(Cursor::decode(&cursor.encode(), plan), Ok(cursor));
        assert_eq!(Cursor::decode(&[], plan).unwrap().next, 0);
        assert!(Cursor::decode(&cursor.encode(), Fingerprint::of(b"other")).is_err());
        assert!(Cursor::decode(&[0; 39], plan).is_err());
        assert!(Cursor::decode(&[0; 41], plan).is_err());
    }
}
