//! Provides the verification of a cache: every byte that was sealed, with the place of whatever is not as it was written.

use distill_proto::Frame;
use serde::Serialize;

use super::{Cache, Contents, ShardPlan, contents::sealed_name, partial::Partial};
use crate::{
    Error, Result,
    plan::Served,
    progress::{Progress, Words},
};

const WORDS: Words = Words {
    label: "verify",
    parts: "shards",
    units: "sequences",
};

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Number of the shard.
    pub shard: u32,
    /// Byte of the file where the damaged part begins.
    pub offset: u64,
    /// What does not fit.
    pub reason: String,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Shards of the plan.
    pub shards: u64,
    /// Of these sealed.
    pub sealed: u64,
    /// Of these the ones that lack a frame of the corpus.
    pub missing: u64,
    /// Frames that were read.
    pub frames: u64,
    /// Bytes of sealed shards.
    pub bytes: u64,
    /// Frames in partial shards.
    pub partial_frames: u64,
    /// What is damaged, in order.
    pub damage: Vec<Damage>,
    /// Whether every shard of the plan is there and was read.
    pub complete: bool,
}

impl Cache {
    /// Reads everything and decodes every frame, until `stopped` says so between two shards.
    ///
    /// # Errors
    /// `Cache` where the vocabulary or the basis is damaged; `Io`.
    pub fn verify(&self, stopped: &dyn Fn() -> bool) -> Result<Verdict> {
        self.vocabulary()?;
        self.projection()?;
        self.basis()?;
        let contents = self.contents();
        let mut progress = Progress::of(
            WORDS,
            contents.shards.len() as u64,
            contents.entries.len() as u64,
        );
        let mut verdict = Verdict {
            shards: contents.shards.len() as u64,
            ..Verdict::default()
        };
        for &shard in contents.shards.iter() {
            if stopped() {
                return Ok(verdict);
            }
            verify_shard(&contents, shard, self.served(), &mut verdict)?;
            progress.advance(1, shard.count as u64);
        }
        verdict.complete = verdict.missing == 0;
        Ok(verdict)
    }
}

fn verify_shard(
    contents: &Contents,
    shard: ShardPlan,
    served: &Served,
    verdict: &mut Verdict,
) -> Result<()> {
    // What is sealed is to be read, no copy of it.
    contents.storage.forget(&sealed_name(shard.number));
    let header = match contents.sealed_header(shard) {
        Ok(Some(header)) => header,
        Ok(None) => {
            let expected = contents.expected(shard);
            let partial = Partial::scan(contents.files.as_ref(), &expected)?;
            let found = partial.unwrap_or_default().extents;
            let lacks = (shard.first_index..)
                .zip(0..shard.count)
                .any(|(place, at)| served.position(place).is_some() && !found.contains_key(&at));
            verdict.missing += u64::from(lacks);
            verdict.partial_frames += found.len() as u64;
            return Ok(());
        }
        Err(error) => return verdict.note(error),
    };
    verdict.sealed += 1;
    verdict.bytes += header.file_bytes();
    for position in 0..shard.count {
        let frame = match contents.sealed_frame(&header, position) {
            Ok(frame) => frame,
            Err(error) => {
                verdict.note(error)?;
                continue;
            }
        };
        verdict.frames += 1;
        // Behind a right checksum only a fault of the writer's could be found: that too is better known.
        if let Err(error) = Frame::decode(&frame, &header.context(position)) {
            let offset = header.extent(position).map_or(0, |(offset, _)| offset);
            verdict.damage.push(Damage {
                shard: shard.number,
                offset,
                reason: error.to_string(),
            });
        }
    }
    Ok(())
}

impl Verdict {
    fn note(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Damaged {
                shard,
                offset,
                reason,
                ..
            } => {
                self.damage.push(Damage {
                    shard,
                    offset,
                    reason,
                });
                Ok(())
            }
            other => Err(other),
        }
    }

    /// Numbers of the shards that hold something damaged.
    pub fn damaged_shards(&self) -> Vec<u32> {
        let mut shards: Vec<u32> = self.damage.iter().map(|damage| damage.shard).collect();
        shards.dedup();
        shards
    }
}
