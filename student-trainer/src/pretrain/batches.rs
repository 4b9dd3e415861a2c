//! Provides batches of sequences of like length in a shuffled order that the seed fixes.

use distill_text::Sequence;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{Error, Result};

/// Batches that are drawn, sorted by length and shuffled together: more waste less on padding, fewer mix better.
const BATCHES_A_POOL: usize = 16;

/// Pass after pass over the sequences, every one once a pass.
pub(super) struct Batches {
    sequences: Vec<Sequence>,
    batch_size: usize,
    random: StdRng,
    /// Indices left in this pass, in their shuffled order from the back.
    left: Vec<usize>,
    pool: Vec<Vec<usize>>,
    taken: u64,
}

impl Batches {
    /// # Errors
    /// There is no sequence.
    pub fn new(sequences: Vec<Sequence>, batch_size: usize, seed: u64) -> Result<Self> {
        if sequences.is_empty() {
            return Err(Error::Config(
                "data: there is no sequence with a target in these files".into(),
            ));
        }
        Ok(Self {
            sequences,
            batch_size,
            random: StdRng::seed_from_u64(seed),
            left: Vec::new(),
            pool: Vec::new(),
            taken: 0,
        })
    }

    /// Batches in a pass, the last one perhaps smaller.
    pub fn steps_a_pass(&self) -> usize {
        self.sequences.len().div_ceil(self.batch_size)
    }

    /// Passes begun, with the fraction of the current one.
    pub fn epoch(&self) -> f64 {
        self.taken as f64 / self.sequences.len() as f64
    }

    /// The next batch, never empty.
    pub fn next_batch(&mut self) -> Vec<&Sequence> {
        if self.pool.is_empty() {
            self.fill_pool();
        }
        let indices = self.pool.pop().unwrap_or_default();
        self.taken += indices.len() as u64;
        indices.iter().map(|&i| &self.sequences[i]).collect()
    }

    fn fill_pool(&mut self) {
        if self.left.is_empty() {
            self.left = (0..self.sequences.len()).collect();
            self.left.shuffle(&mut self.random);
        }
        let wanted = self.batch_size * BATCHES_A_POOL;
        let mut drawn = self.left.split_off(self.left.len().saturating_sub(wanted));
        drawn.sort_by_key(|&i| self.sequences[i].token_ids.len());
        self.pool = drawn
            .chunks(self.batch_size)
            .map(<[usize]>::to_vec)
            .collect();
        self.pool.shuffle(&mut self.random);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(count: usize) -> Vec<Sequence> {
        let sequence = |i: usize| Sequence {
            id: i as u64,
            content_id: i as u64,
            text: String::new(),
            token_ids: vec![0; 2 + i * 7 % 11],
            byte_offsets: Vec::new(),
            target_mask: Vec::new(),
            view: None,
        };
        (0..count).map(sequence).collect()
    }

    #[test]
    fn a_pass_has_every_sequence_once_and_the_seed_fixes_the_order() {
        let order = |seed| {
            let mut batches = Batches::new(sequences(103), 4, seed).unwrap();
            assert_eq!(batches.steps_a_pass(), 26);
            let ids = |_| -> Vec<u64> { batches.next_batch().iter().map(|s| s.id).collect() };
            (0..52).flat_map(ids).collect::<Vec<u64>>()
        };
        let first = order(1);
        for pass in first.chunks(103) {
            let mut sorted = pass.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..103).collect::<Vec<u64>>());
        }
        assert_ne!(first[..103], first[103..]);
        assert_eq!(first, order(1));
        assert_ne!(first, order(2));
    }

    #[test]
    fn an_empty_corpus_is_an_error() {
        assert!(Batches::new(Vec::new(), 4, 1).is_err());
    }
}
