//! Provides the digest over all frames of a plan in order, grown as they arrive.

use distill_proto::Fingerprint;

use super::StoredBlock;
use crate::Result;

/// blake3 over the bytes of the frames 0, 1, 2, ... as far as they are there.
#[derive(Default)]
pub struct OrderDigest {
    hasher: blake3::Hasher,
    next: u64,
}

impl OrderDigest {
    /// Takes in what has arrived since the last call; the digest once the last of `count` frames is in.
    ///
    /// # Errors
    /// What `get` gives.
    pub fn advance(
        &mut self,
        get: impl Fn(u64) -> Result<Option<StoredBlock>>,
        count: u64,
    ) -> Result<Option<Fingerprint>> {
        while self.next < count {
            let Some(block) = get(self.next)? else {
                return Ok(None);
            };
            self.hasher.update(&block.frame);
            self.next += 1;
        }
        Ok(Some(Fingerprint(*self.hasher.finalize().as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BlockStore, Spool};

    #[test]
    fn does_not_depend_on_the_order_of_arrival() {
        let spool = Spool::create(None, 3).unwrap();
        let mut digest = OrderDigest::default();
        for (index, frame) in [(1, "b"), (0, "a")] {
            spool.put(index, frame.as_bytes()).unwrap();
            assert_eq!(digest.advance(|at| spool.get(at), 3).unwrap(), None);
        }
        spool.put(2, b"c").unwrap();
        assert_eq!(
            digest.advance(|at| spool.get(at), 3).unwrap(),
            Some(Fingerprint::of(b"abc"))
        );
    }
}
