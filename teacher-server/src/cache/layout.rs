//! Provides the static plan of a cache: segments of sequences, cut into batches and shards once and for all.

use std::path::PathBuf;

use distill_proto::{
    Fingerprint,
    limits::{PLAN_SEQUENCES_MAX, SHARD_FRAMES_MAX},
    v1,
};

use crate::{Error, Result, plan::Entry};

/// Sequences that came into a cache together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// 0, 1, 2, ... in the order in which they came.
    pub number: u32,
    /// Names the corpus that they were taken from.
    pub corpus: Fingerprint,
    /// Place in the plan's order of the first sequence.
    pub first_index: u64,
    /// Number of the first shard.
    pub first_shard: u32,
    /// Sequences of a batch.
    pub batch_size: usize,
    /// In order.
    pub entries: Vec<Entry>,
    /// Sequences of every shard: whole batches, but for the last one.
    pub shards: Vec<usize>,
}

/// Where a shard lies in the plan's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardPlan {
    /// Number, which is its place among the shards as well.
    pub number: u32,
    /// Place in the plan's order of its first sequence.
    pub first_index: u64,
    /// Sequences.
    pub count: usize,
}

impl Segment {
    /// Cuts `entries` after those of `before` into shards of whole batches, each of about `shard_bytes` bytes where a target
    /// takes `target_bytes`.
    pub fn cut(
        before: Option<&Segment>,
        corpus: Fingerprint,
        entries: Vec<Entry>,
        batch_size: usize,
        (target_bytes, shard_bytes): (u64, u64),
    ) -> Self {
        let batch_size = batch_size.max(1);
        let bytes = |batch: &[Entry]| -> u64 {
            let targets: u64 = batch.iter().map(|entry| u64::from(entry.targets)).sum();
            targets * target_bytes
        };
        let mut shards = Vec::new();
        let (mut count, mut held) = (0, 0);
        for batch in entries.chunks(batch_size) {
            let more = bytes(batch);
            let full = held + more > shard_bytes || count + batch.len() > SHARD_FRAMES_MAX;
            if count > 0 && full {
                shards.push(std::mem::take(&mut count));
                held = 0;
            }
            count += batch.len();
            held += more;
        }
        if count > 0 {
            shards.push(count);
        }
        Self {
            number: before.map_or(0, |segment| segment.number + 1),
            first_index: before.map_or(0, Segment::end_index),
            first_shard: before.map_or(0, Segment::end_shard),
            corpus,
            batch_size,
            entries,
            shards,
        }
    }

    /// Place after its last sequence.
    pub fn end_index(&self) -> u64 {
        self.first_index + self.entries.len() as u64
    }

    /// Number after that of its last shard.
    pub fn end_shard(&self) -> u32 {
        self.first_shard.saturating_add(number(self.shards.len()))
    }

    /// Its shards in order.
    pub fn shard_plans(&self) -> impl Iterator<Item = ShardPlan> {
        let mut first_index = self.first_index;
        (self.first_shard..)
            .zip(&self.shards)
            .map(move |(number, &count)| {
                let plan = ShardPlan {
                    number,
                    first_index,
                    count,
                };
                first_index += count as u64;
                plan
            })
    }

    /// As it is written.
    pub fn to_message(&self) -> v1::CacheSegment {
        v1::CacheSegment {
            number: self.number,
            corpus_fingerprint: self.corpus.to_hex(),
            first_index: self.first_index,
            first_shard: self.first_shard,
            batch_size: number(self.batch_size),
            sequence_ids: self.entries.iter().map(|entry| entry.id).collect(),
            token_counts: self.entries.iter().map(|entry| entry.tokens).collect(),
            target_counts: self.entries.iter().map(|entry| entry.targets).collect(),
            shard_sequences: self.shards.iter().copied().map(number).collect(),
            content_ids: self.unless(|e| e.content_id == e.id, |e| e.content_id),
            pairs: self.unless(
                |entry| entry.shared_bytes.is_none(),
                |entry| {
                    entry
                        .shared_bytes
                        .map_or(0, |bytes| bytes.saturating_add(1))
                },
            ),
            sources: self.unless(
                |entry| entry.source.is_none(),
                |entry| entry.source.map_or(0, |source| source + 1),
            ),
        }
    }

    /// A number for every entry, or none where all of them are `plain`: such segments are written as they always were.
    fn unless<T>(&self, plain: impl Fn(&Entry) -> bool, number: impl Fn(&Entry) -> T) -> Vec<T> {
        if self.entries.iter().all(plain) {
            return Vec::new();
        }
        self.entries.iter().map(number).collect()
    }

    /// Reads the segment that follows `before`.
    ///
    /// # Errors
    /// `Cache` naming what does not fit.
    pub fn from_message(
        message: &v1::CacheSegment,
        before: Option<&Segment>,
        path: PathBuf,
    ) -> Result<Self> {
        let count = message.sequence_ids.len();
        let cut: u64 = message.shard_sequences.iter().map(|&n| u64::from(n)).sum();
        let corpus = Fingerprint::from_hex(&message.corpus_fingerprint);
        let segment = Self {
            number: message.number,
            corpus: corpus.unwrap_or_default(),
            first_index: message.first_index,
            first_shard: message.first_shard,
            batch_size: message.batch_size as usize,
            entries: entries(message),
            shards: message
                .shard_sequences
                .iter()
                .map(|&n| n as usize)
                .collect(),
        };
        let follows = segment.number == before.map_or(0, |b| b.number + 1)
            && segment.first_index == before.map_or(0, Segment::end_index)
            && segment.first_shard == before.map_or(0, Segment::end_shard);
        let whole = corpus.is_some()
            && segment.batch_size > 0
            && segment.entries.len() == count
            && message.token_counts.len() == count
            && message.target_counts.len() == count
            && [
                message.content_ids.len(),
                message.pairs.len(),
                message.sources.len(),
            ]
            .iter()
            .all(|&length| length == 0 || length == count)
            && segment.entries.iter().all(|entry| {
                entry
                    .source
                    .is_none_or(|source| source < segment.first_index)
            })
            && cut == count as u64
            && segment.first_index.saturating_add(count as u64) <= PLAN_SEQUENCES_MAX
            && segment
                .shards
                .iter()
                .all(|&n| (1..=SHARD_FRAMES_MAX).contains(&n));
        if follows && whole {
            return Ok(segment);
        }
        Err(Error::cache(
            path,
            "the lists of this segment do not fit together, or not after the segment before; the file is not one that teacher-server wrote",
        ))
    }
}

/// The sequences of a segment; lists that may be left out are read as far as they go.
fn entries(message: &v1::CacheSegment) -> Vec<Entry> {
    let required = message
        .sequence_ids
        .iter()
        .zip(&message.token_counts)
        .zip(&message.target_counts);
    required
        .enumerate()
        .map(|(at, ((&id, &tokens), &targets))| Entry {
            id,
            tokens,
            targets,
            content_id: message.content_ids.get(at).copied().unwrap_or(id),
            shared_bytes: message.pairs.get(at).and_then(|pair| pair.checked_sub(1)),
            source: message
                .sources
                .get(at)
                .and_then(|source| source.checked_sub(1)),
        })
        .collect()
}

/// A number as it is written. Settings and `SHARD_FRAMES_MAX` bound what is counted here.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: u64) -> Vec<Entry> {
        (0..count)
            .map(|id| Entry {
                id,
                tokens: 10,
                targets: 9,
                content_id: id,
                shared_bytes: None,
                source: None,
            })
            .collect()
    }

    #[test]
    fn shards_hold_whole_batches_and_every_sequence_once() {
        let corpus = Fingerprint::of(b"c");
        // Three sequences a batch are 270 bytes; two batches fit into a shard.
        let first = Segment::cut(None, corpus, entries(16), 3, (10, 600));
        assert_eq!(first.shards, [6, 6, 4]);
        let second = Segment::cut(Some(&first), corpus, entries(2), 3, (10, 1));
        assert_eq!(
            (second.number, second.first_index, second.first_shard),
            (1, 16, 3)
        );
        assert_eq!(second.shards, [2]);
        let plans: Vec<_> = first.shard_plans().chain(second.shard_plans()).collect();
        assert_eq!(
            plans
                .iter()
                .map(|p| (p.number, p.first_index))
                .collect::<Vec<_>>(),
            [(0, 0), (1, 6), (2, 12), (3, 16)]
        );
        let read = |message: &v1::CacheSegment, before| {
            Segment::from_message(message, before, "segment".into())
        };
        let message = second.to_message();
        assert_eq!(read(&message, Some(&first)).unwrap(), second);
        assert!(read(&message, None).is_err());
        let mut short = message.clone();
        short.token_counts.pop();
        assert!(read(&short, Some(&first)).is_err());
        let mut uncut = message;
        uncut.shard_sequences[0] = 1;
        assert!(read(&uncut, Some(&first)).is_err());
    }

    #[test]
    fn pairs_and_what_they_take_their_rows_from_come_back_and_plain_segments_are_written_as_before()
    {
        let corpus = Fingerprint::of(b"c");
        let first = Segment::cut(None, corpus, entries(4), 2, (10, 600));
        let plain = first.to_message();
        assert!(plain.content_ids.is_empty() && plain.pairs.is_empty() && plain.sources.is_empty());
        let mut edited = entries(3);
        edited[1] = Entry {
            id: 77,
            content_id: 2,
            shared_bytes: Some(0),
            source: Some(0),
            ..edited[1]
        };
        edited[2].shared_bytes = Some(8);
        let second = Segment::cut(Some(&first), corpus, edited, 2, (10, 600));
        let message = second.to_message();
        assert_eq!(message.pairs, [0, 1, 9]);
        assert_eq!(message.sources, [0, 1, 0]);
        let read = |message: &v1::CacheSegment| {
            Segment::from_message(message, Some(&first), "segment".into())
        };
        assert_eq!(read(&message).unwrap(), second);
        for break_it in [
            (|message: &mut v1::CacheSegment| message.sources[1] = 5) as fn(&mut v1::CacheSegment),
            |message| message.sources.truncate(2),
            |message| message.pairs.truncate(2),
            |message| message.content_ids.push(1),
        ] {
            let mut broken = message.clone();
            break_it(&mut broken);
            assert!(read(&broken).is_err());
        }
    }
}
