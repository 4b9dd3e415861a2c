//! Provides the plan: which sequences are computed in which batches, and the fingerprint that everything computed is bound to.

mod bound;
mod pairs;
mod served;

use std::{collections::HashMap, ops::Range};

use distill_proto::Fingerprint;
use distill_text::Sequence;

use crate::{Error, Result};
pub use bound::{captured_settings, differences, fingerprint, settings, target_bytes};
pub use pairs::Pairs;
pub use served::Served;

/// What the plan depends on beside the settings and the corpus.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Weights and configuration of the teacher.
    pub model: Fingerprint,
    /// What the tokenizer does.
    pub tokenizer: Fingerprint,
    /// Which id means which token; follows from the tokenizer, so the plan does not count it again.
    pub vocabulary: Fingerprint,
    /// Effective vocabulary: ids that logits are computed for.
    pub vocab_size: u32,
    /// Device and arithmetic library: bytes are promised equal for equal backends only.
    pub backend: String,
}

/// What the plan knows of a sequence without its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Content-derived id.
    pub id: u64,
    /// Tokens.
    pub tokens: u32,
    /// Targets, one row each.
    pub targets: u32,
    /// Names what the teacher reads; the id where the student has no view of its own.
    pub content_id: u64,
    /// Bytes that both views share, where the record gives two.
    pub shared_bytes: Option<u32>,
    /// Place of the earlier sequence whose rows it takes, where it is not computed.
    pub source: Option<u64>,
}

impl Entry {
    /// Of a sequence.
    pub fn of(sequence: &Sequence) -> Self {
        Self {
            id: sequence.id,
            tokens: sequence.token_ids.len() as u32,
            targets: sequence.targets() as u32,
            content_id: sequence.content_id,
            shared_bytes: sequence.view.as_ref().map(pairs::shared_bytes),
            source: None,
        }
    }
}

/// The sequences in order, cut into batches that never change, since rounding may depend on the shape of a batch.
///
/// Its fingerprint says *how* they are captured and leaves out which they are: sequences are told apart by their content, so
/// what a cache holds stays valid when documents are added.
#[derive(Debug)]
pub struct Plan {
    /// Names how everything below is computed.
    pub fingerprint: Fingerprint,
    /// Names the corpus.
    pub corpus: Fingerprint,
    entries: Vec<Entry>,
    /// One for every entry; absent where only its frames are at hand.
    sequences: Vec<Option<Sequence>>,
    batch_size: usize,
    /// First sequence of every batch.
    batch_starts: Vec<usize>,
    indices: HashMap<u64, u64>,
    served: Served,
}

impl Plan {
    /// Lays sequences out under given fingerprints.
    ///
    /// # Errors
    /// `Mismatch` where two sequences carry the same id.
    pub fn of_sequences(
        fingerprint: Fingerprint,
        corpus: Fingerprint,
        sequences: Vec<Sequence>,
        batch_size: usize,
    ) -> Result<Self> {
        let entries = sequences.iter().map(Entry::of).collect::<Vec<_>>();
        let parts = [(batch_size, entries.len())];
        let sequences = sequences.into_iter().map(Some).collect();
        Self::of_parts(fingerprint, corpus, entries, sequences, &parts)
    }

    /// Lays out parts that are cut into batches each by itself: batch size and number of entries of every part.
    ///
    /// # Errors
    /// `Mismatch` where two entries carry the same id.
    pub fn of_parts(
        fingerprint: Fingerprint,
        corpus: Fingerprint,
        entries: Vec<Entry>,
        sequences: Vec<Option<Sequence>>,
        parts: &[(usize, usize)],
    ) -> Result<Self> {
        let mut indices = HashMap::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            if indices.insert(entry.id, index as u64).is_some() {
                return Err(Error::Mismatch(format!(
                    "two sequences of the corpus have the id {:016x}",
                    entry.id
                )));
            }
        }
        let mut batch_starts = Vec::new();
        let mut first = 0;
        for &(batch_size, count) in parts {
            batch_starts.extend((first..first + count).step_by(batch_size.max(1)));
            first += count;
        }
        let batch_size = parts.last().map_or(1, |&(batch_size, _)| batch_size.max(1));
        Ok(Self {
            fingerprint,
            corpus,
            entries,
            sequences,
            batch_size,
            batch_starts,
            indices,
            served: Served::default(),
        })
    }

    /// The same plan, of which only these sequences are served.
    pub fn serving(self, served: Served) -> Self {
        Self { served, ..self }
    }

    /// Number of sequences.
    pub fn count(&self) -> u64 {
        self.entries.len() as u64
    }

    /// What is known of every sequence, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The sequence at `index`; `None` where its text is not at hand.
    pub fn sequence(&self, index: usize) -> Option<&Sequence> {
        self.sequences.get(index)?.as_ref()
    }

    /// The sequences whose texts are at hand, in order.
    pub fn into_sequences(self) -> Vec<Sequence> {
        self.sequences.into_iter().flatten().collect()
    }

    /// Sequences of a full batch.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// How many sequences are served.
    pub fn served_count(&self) -> u64 {
        self.served.count(self.count())
    }

    /// Place in the order of the sequence that is served at `position`.
    pub fn place(&self, position: u64) -> Option<u64> {
        self.served.place(position, self.count())
    }

    /// Whether the sequence at `place` is served.
    pub fn is_served(&self, place: u64) -> bool {
        self.served.position(place).is_some()
    }

    /// Where the sequence with this id is served.
    pub fn position_of(&self, id: u64) -> Option<u64> {
        self.served.position(*self.indices.get(&id)?)
    }

    /// The batch that computes the sequence at `index`.
    pub fn batch_of(&self, index: u64) -> u64 {
        let after = self
            .batch_starts
            .partition_point(|&start| start as u64 <= index);
        after.saturating_sub(1) as u64
    }

    /// Positions in the order that one batch computes.
    pub fn batch(&self, batch: u64) -> Range<usize> {
        let all = self.entries.len();
        let start = |batch: usize| self.batch_starts.get(batch).copied().unwrap_or(all);
        start(batch as usize)..start((batch as usize).saturating_add(1))
    }

    /// Tokens over all sequences.
    pub fn token_count(&self) -> u64 {
        self.entries.iter().map(|e| u64::from(e.tokens)).sum()
    }

    /// Targets over all sequences: rows that will be computed.
    pub fn target_count(&self) -> u64 {
        self.entries.iter().map(|e| u64::from(e.targets)).sum()
    }

    /// Longest sequence in tokens.
    pub fn longest(&self) -> usize {
        let longest = self.entries.iter().map(|entry| entry.tokens).max();
        longest.unwrap_or_default() as usize
    }
}
