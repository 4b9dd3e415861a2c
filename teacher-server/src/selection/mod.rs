/*! Provides what is kept of a row of logits: the K largest entries and statistics over the whole row.

```text
 logits [n, V] ──> select_rows (rayon over rows) ──> top_k::Selector    block maxima, threshold, K ids and logits
                                                └──> statistics         max, mean, std, logsumexp per temperature
```

A row is read twice: once for block maxima and moments, once for the exponentials; the second read comes from the
cache. Loops run over fixed-width lanes, so that the result does not depend on the instruction set that `pulp` picks.
*/

mod exp;
mod statistics;
mod top_k;

use distill_proto::limits::TEMPERATURES_MAX;
use rayon::prelude::*;

pub use statistics::Statistics;
use statistics::{BlockScan, logsumexp};
use top_k::keep_largest;

/// A row that holds NaN or an infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite {
    /// Row in the chunk.
    pub row: usize,
}

/// What is kept of a chunk of rows.
///
/// # Shapes
/// `ids` and `logits` `[n, k]`, `statistics` `[n]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Selected {
    /// Strictly increasing within a row.
    pub ids: Vec<u32>,
    /// Raw logits at `ids`.
    pub logits: Vec<f32>,
    /// Over the whole row.
    pub statistics: Vec<Statistics>,
}

/// Buffers of one worker, reused from row to row.
#[derive(Default)]
struct Scratch {
    block_maxima: Vec<f32>,
    sorted_maxima: Vec<f32>,
    candidates: Vec<u64>,
}

/// Keeps the `k` largest entries (ties go to the lower id) and the statistics of every row, on all cores.
///
/// # Shapes
/// `logits` `[n, vocab]`, row-major; `1 <= k <= vocab`; at most `TEMPERATURES_MAX` temperatures, all positive.
///
/// # Errors
/// `NotFinite` naming the first row found that holds NaN or an infinity.
pub fn select_rows(
    logits: &[f32],
    vocab: usize,
    k: usize,
    temperatures: &[f32],
) -> Result<Selected, NotFinite> {
    debug_assert!(k >= 1 && k <= vocab && temperatures.len() <= TEMPERATURES_MAX);
    let rows = logits.len() / vocab.max(1);
    let mut ids = vec![0u32; rows * k];
    let mut kept = vec![0f32; rows * k];
    let statistics = logits
        .par_chunks_exact(vocab)
        .zip(ids.par_chunks_exact_mut(k))
        .zip(kept.par_chunks_exact_mut(k))
        .enumerate()
        .map_init(Scratch::default, |scratch, (row, ((logits, ids), kept))| {
            pulp::Arch::new()
                .dispatch(|| select_row(logits, temperatures, scratch, ids, kept))
                .ok_or(NotFinite { row })
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Selected {
        ids,
        logits: kept,
        statistics,
    })
}

#[inline(always)]
fn select_row(
    logits: &[f32],
    temperatures: &[f32],
    scratch: &mut Scratch,
    ids: &mut [u32],
    kept: &mut [f32],
) -> Option<Statistics> {
    let scan = BlockScan::of(logits, &mut scratch.block_maxima);
    if !scan.is_finite() {
        return None;
    }
    keep_largest(
        logits,
        &scratch.block_maxima,
        &mut scratch.sorted_maxima,
        &mut scratch.candidates,
        ids,
    );
    for (value, &id) in kept.iter_mut().zip(ids.iter()) {
        *value = logits.get(id as usize).copied().unwrap_or(scan.max);
    }
    Some(Statistics {
        max: scan.max,
        mean: scan.mean(),
        std: scan.std(),
        logsumexp: logsumexp(logits, scan.max, temperatures),
    })
}

#[cfg(test)]
mod tests;
