//! Provides what is kept of a chunk of rows, each as wide as it needs, and blocks of equal width made of them.

use std::ops::Range;

use distill_proto::Estimator;

use super::Statistics;

/// What is kept of a chunk of rows.
///
/// # Shapes
/// `ids` and `logits` hold `widths[i]` entries for row i, one row after the other; so does `counts`, which is empty for
/// top-k. `widths` and `statistics` `[n]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Selected {
    /// Strictly increasing within a row.
    pub ids: Vec<u32>,
    /// Raw logits at `ids`.
    pub logits: Vec<f32>,
    /// Draws of `ids`; 0 for an entry of a head.
    pub counts: Vec<u32>,
    /// Entries of every row.
    pub widths: Vec<usize>,
    /// Over the whole row.
    pub statistics: Vec<Statistics>,
}

/// Rows of one width, as a frame holds them.
///
/// # Shapes
/// `ids`, `logits`, `counts`: `[rows, k]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Block {
    /// Entries a row, padding included.
    pub k: usize,
    /// Strictly increasing within a row.
    pub ids: Vec<u32>,
    /// Raw logits; the row's largest one for padding.
    pub logits: Vec<f32>,
    /// Draws; empty for top-k.
    pub counts: Vec<u32>,
}

impl Selected {
    /// Appends the rows of the next chunk.
    pub fn extend(&mut self, next: Selected) {
        self.ids.extend(next.ids);
        self.logits.extend(next.logits);
        self.counts.extend(next.counts);
        self.widths.extend(next.widths);
        self.statistics.extend(next.statistics);
    }

    /// The given rows, filled up to the widest of them; `None` where a row is outside.
    pub fn block(&self, rows: Range<usize>, estimator: Estimator) -> Option<Block> {
        let widths = self.widths.get(rows.clone())?;
        let statistics = self.statistics.get(rows.clone())?;
        let mut start: usize = self.widths.get(..rows.start)?.iter().sum();
        let k = widths.iter().copied().max().unwrap_or(1);
        let Some(padding) = estimator.padding_count() else {
            let kept = start..start + k * rows.len();
            return Some(Block {
                k,
                ids: self.ids.get(kept.clone())?.to_vec(),
                logits: self.logits.get(kept)?.to_vec(),
                counts: Vec::new(),
            });
        };
        let mut block = Block {
            k,
            ..Block::default()
        };
        let mut entries: Vec<(u32, f32, u32)> = Vec::with_capacity(k);
        for (width, statistics) in widths.iter().zip(statistics) {
            let kept = start..start + width;
            let ids = self.ids.get(kept.clone())?;
            let logits = self.logits.get(kept.clone())?;
            let counts = self.counts.get(kept)?;
            entries.clear();
            let numbered = ids.iter().zip(logits).zip(counts);
            entries.extend(numbered.map(|((id, logit), count)| (*id, *logit, *count)));
            // A logit at the maximum has the smallest code.
            let fill = unused(ids).take(k - width);
            entries.extend(fill.map(|id| (id, statistics.max, padding)));
            entries.sort_unstable_by_key(|entry| entry.0);
            block.ids.extend(entries.iter().map(|entry| entry.0));
            block.logits.extend(entries.iter().map(|entry| entry.1));
            block.counts.extend(entries.iter().map(|entry| entry.2));
            start += width;
        }
        Some(block)
    }
}

/// The ids that are not in `ids`, which ascends, from the smallest on. Another row of the same vocabulary has more entries,
/// so there are enough of them for it.
fn unused(ids: &[u32]) -> impl Iterator<Item = u32> {
    let mut used = ids.iter().copied().peekable();
    (0u32..).filter(move |id| used.next_if_eq(id).is_none())
}

#[cfg(test)]
mod tests {
    use distill_proto::PADDING_COUNT;

    use super::*;

    fn selected() -> Selected {
        let statistics = |max| Statistics {
            max,
            mean: 0.0,
            std: 1.0,
            logsumexp: Default::default(),
        };
        Selected {
            ids: vec![4, 0, 2, 3, 1, 2],
            logits: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            counts: vec![9, 0, 1, 2, 3, 4],
            widths: vec![1, 3, 2],
            statistics: [7.0, 8.0, 9.0].map(statistics).to_vec(),
        }
    }

    #[test]
    fn short_rows_are_filled_with_ids_that_they_do_not_hold() {
        let block = selected().block(0..3, Estimator::HeadSampled).unwrap();
        assert_eq!(block.k, 3);
        assert_eq!(block.ids, [0, 1, 4, 0, 2, 3, 0, 1, 2]);
        const P: u32 = PADDING_COUNT;
        assert_eq!(block.counts, [P, P, 9, 0, 1, 2, P, 3, 4]);
        assert_eq!(block.logits, [7.0, 7.0, 1.0, 2.0, 3.0, 4.0, 9.0, 5.0, 6.0]);
        let block = selected().block(2..3, Estimator::Sampled).unwrap();
        assert_eq!((block.k, block.ids), (2, vec![1, 2]));
    }

    #[test]
    fn rows_outside_are_no_panic() {
        assert!(selected().block(2..4, Estimator::Sampled).is_none());
        assert!(selected().block(4..9, Estimator::Sampled).is_none());
    }
}
