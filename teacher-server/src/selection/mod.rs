/*! Provides what is kept of a row of logits: its largest entries, draws from it, and statistics over the whole row.

```text
 logits [n, V] ──> select_rows (rayon over rows) ──┬─> top_k         block maxima, threshold, K ids and logits
                                                   ├─> statistics    max, mean, std, logsumexp per temperature
                                                   └─> draws         sums of parts, ids with counts
 Selected (rows of different widths) ──> block: rows of one width, padded
 logits on a card ──> select_on_device: the same by kernels
```

A row is read twice: once for block maxima and moments, once for the exponentials; the second read comes from the
cache. Loops run over fixed-width lanes, so that the result does not depend on the instruction set that `pulp` picks.
*/

mod device;
mod draws;
mod kept;
mod statistics;
mod top_k;
mod uniforms;

use distill_proto::Estimator;
use rayon::prelude::*;

pub use device::select_on_device;
use draws::draw;
pub use kept::{Block, Selected};
pub use statistics::Statistics;
use statistics::{BlockScan, logsumexp};
use top_k::keep_largest;
pub use uniforms::RowKey;
pub(crate) use uniforms::Uniforms;

/// A row that holds NaN or an infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite {
    /// Row in the chunk.
    pub row: usize,
}

/// Which entries of a row are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// How a row stands for the distribution.
    pub estimator: Estimator,
    /// Largest entries, where the estimator has a head.
    pub top_k: usize,
    /// Draws with replacement at temperature 1, where it draws.
    pub draws: usize,
    /// Seed of the draws.
    pub sample_seed: u64,
}

impl Keep {
    /// The `k` largest entries.
    pub fn top_k(k: usize) -> Self {
        Self {
            estimator: Estimator::TopK,
            top_k: k,
            draws: 0,
            sample_seed: 0,
        }
    }

    /// Largest entries that are kept whatever is drawn.
    pub fn head(&self) -> usize {
        if self.estimator.has_head() {
            self.top_k
        } else {
            0
        }
    }

    /// Draws that a row stands for.
    pub fn drawn(&self) -> usize {
        if self.estimator.is_drawn() {
            self.draws
        } else {
            0
        }
    }

    /// Fills `out` with the numbers in [0, 1) that a row's draws are made from, in ascending order.
    fn uniforms(&self, key: RowKey, out: &mut Vec<f64>) {
        Uniforms::new(self.sample_seed, key).sorted(self.drawn(), out);
    }

    /// The most entries that a row can have.
    pub fn width_max(&self, vocab: usize) -> usize {
        self.head().saturating_add(self.drawn()).min(vocab)
    }
}

/// Buffers of one worker, reused from row to row.
#[derive(Default)]
struct Scratch {
    block_maxima: Vec<f32>,
    sorted_maxima: Vec<f32>,
    candidates: Vec<u64>,
    parts: Vec<f64>,
    uniforms: Vec<f64>,
    exps: Vec<f32>,
}

/// Keeps what `keep` says (among equal entries the lower id) and the statistics of every row, on all cores.
///
/// # Shapes
/// `logits` `[n, vocab]`, row-major; the head of `keep` is at most `vocab`; at most `TEMPERATURES_MAX` temperatures, all
/// positive; `keys` `[n]` names the rows, and may be empty where nothing is drawn.
///
/// # Errors
/// `NotFinite` naming the first row found that holds NaN or an infinity.
pub fn select_rows(
    logits: &[f32],
    vocab: usize,
    keep: &Keep,
    temperatures: &[f32],
    keys: &[RowKey],
) -> Result<Selected, NotFinite> {
    let (rows, k) = (logits.len() / vocab.max(1), keep.head());
    let mut ids = vec![0u32; rows * k];
    // A chunk of no entries is none, so rows without a head get theirs from an iterator of empty slices.
    let heads: Vec<&mut [u32]> = match k {
        0 => (0..rows).map(|_| Default::default()).collect(),
        _ => ids.chunks_exact_mut(k).collect(),
    };
    let chosen = logits
        .par_chunks_exact(vocab.max(1))
        .zip(heads)
        .enumerate()
        .map_init(Scratch::default, |scratch, (row, (logits, head))| {
            let key = keys.get(row).filter(|_| keep.estimator.is_drawn());
            let draws = key.map(|&key| (keep, key));
            pulp::Arch::new()
                .dispatch(|| select_row(logits, temperatures, draws, scratch, head))
                .ok_or(NotFinite { row })
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(gather(logits, vocab, keep, &ids, chosen))
}

/// What one row adds to its head.
struct Chosen {
    statistics: Statistics,
    draws: draws::Draws,
}

#[inline(always)]
fn select_row(
    logits: &[f32],
    temperatures: &[f32],
    draws: Option<(&Keep, RowKey)>,
    scratch: &mut Scratch,
    head: &mut [u32],
) -> Option<Chosen> {
    let scan = BlockScan::of(logits, &mut scratch.block_maxima);
    if !scan.is_finite() {
        return None;
    }
    if !head.is_empty() {
        keep_largest(
            logits,
            &scratch.block_maxima,
            &mut scratch.sorted_maxima,
            &mut scratch.candidates,
            head,
        );
    }
    let parts = draws.is_some().then_some(&mut scratch.parts);
    let statistics = Statistics {
        max: scan.max,
        mean: scan.mean(),
        std: scan.std(),
        logsumexp: logsumexp(logits, scan.max, temperatures, parts),
    };
    let draws = draws.map(|(keep, key)| {
        keep.uniforms(key, &mut scratch.uniforms);
        let Scratch {
            parts,
            uniforms,
            exps,
            ..
        } = scratch;
        draw(logits, scan.max, head, parts, uniforms, exps)
    });
    Some(Chosen {
        statistics,
        draws: draws.unwrap_or_default(),
    })
}

/// Puts heads and draws together, ids ascending within a row.
fn gather(
    logits: &[f32],
    vocab: usize,
    keep: &Keep,
    heads: &[u32],
    chosen: Vec<Chosen>,
) -> Selected {
    let mut selected = Selected::default();
    let mut row_entries = Vec::new();
    for (row, (chosen, logits)) in chosen
        .into_iter()
        .zip(logits.chunks_exact(vocab.max(1)))
        .enumerate()
    {
        let (k, drawn) = (keep.head(), chosen.draws);
        let head = heads.get(row * k..(row + 1) * k).unwrap_or_default();
        row_entries.clear();
        row_entries.extend(head.iter().map(|&id| (id, 0)));
        row_entries.extend(drawn);
        row_entries.sort_unstable();
        let logit = |id: u32| {
            logits
                .get(id as usize)
                .copied()
                .unwrap_or(chosen.statistics.max)
        };
        selected.ids.extend(row_entries.iter().map(|(id, _)| id));
        selected
            .logits
            .extend(row_entries.iter().map(|(id, _)| logit(*id)));
        if keep.estimator.is_drawn() {
            selected
                .counts
                .extend(row_entries.iter().map(|(_, count)| count));
        }
        selected.widths.push(row_entries.len());
        selected.statistics.push(chosen.statistics);
    }
    selected
}

#[cfg(test)]
mod draws_tests;
#[cfg(test)]
mod tests;
