//! Provides the ids of the K largest entries of a row in time linear in its length.

use super::statistics::BLOCK;

/// Writes the ids of the `ids.len()` largest entries of `row`, ascending; of equal entries the lower id is kept.
///
/// The K-th largest block maximum bounds the K-th largest entry from below, so only blocks that reach it are read
/// again; what passes the bound, usually little more than K entries, goes through a selection in expected linear time.
#[inline(always)]
pub(super) fn keep_largest(
    row: &[f32],
    block_maxima: &[f32],
    sorted_maxima: &mut Vec<f32>,
    candidates: &mut Vec<u64>,
    ids: &mut [u32],
) {
    let k = ids.len();
    let bound = kth_largest(block_maxima, k, sorted_maxima);
    candidates.clear();
    for (block, (&maximum, values)) in block_maxima.iter().zip(row.chunks(BLOCK)).enumerate() {
        if maximum >= bound {
            let first = block * BLOCK;
            candidates.extend(
                values
                    .iter()
                    .enumerate()
                    .filter(|(_, value)| **value >= bound)
                    .map(|(i, &value)| descending_key(value, (first + i) as u32)),
            );
        }
    }
    if k < candidates.len() {
        candidates.select_nth_unstable(k - 1);
    }
    for (id, &key) in ids.iter_mut().zip(candidates.iter()) {
        *id = key as u32;
    }
    ids.sort_unstable();
}

/// The K-th largest of `maxima`, or minus infinity where there are fewer: then every entry is a candidate.
#[inline(always)]
fn kth_largest(maxima: &[f32], k: usize, scratch: &mut Vec<f32>) -> f32 {
    if maxima.len() < k {
        return f32::NEG_INFINITY;
    }
    scratch.clear();
    scratch.extend_from_slice(maxima);
    let (_, kth, _) = scratch.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    *kth
}

/// A key that sorts larger values first and, among equal ones, lower ids.
#[inline(always)]
fn descending_key(value: f32, id: u32) -> u64 {
    // Adding zero turns -0.0 into 0.0, which compares equal to it but has other bits.
    let bits = (value + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 {
        bits | 1 << 31
    } else {
        !bits
    };
    u64::from(!ascending) << 32 | u64::from(id)
}
