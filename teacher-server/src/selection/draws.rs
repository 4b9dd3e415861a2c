/*! Provides independent draws from the softmax of a row, or from what a head leaves of it.

```text
 sorted uniforms ──> part of SUM_BLOCK entries, by running sums of the parts ──> entry, by running sum within the part
```

The sums of the parts fall off the row's logsumexp, and only parts that a draw falls into are exponentiated once more. A
part's own sum is taken anew there, so the choice within it is exact whatever rounding the sums of the parts carry.
*/

use super::statistics::{SUM_BLOCK, exponentials};

/// Smallest probability outside a head that is drawn from: below it f32 logits cannot tell the tail from rounding.
const TAIL_MASS_MIN: f64 = 1e-7;
/// Parts with less than this share of the mass are never drawn: their entries may be zero in f32.
const PART_SHARE_MIN: f64 = 1e-25;

/// Counts of drawn ids, both ascending.
pub(super) type Draws = Vec<(u32, u32)>;

/// Draws one id for every number of `uniforms`, sorted and in [0, 1), from the softmax of `row` without the ids of `head`.
///
/// `parts` holds `sum exp(y - max)` of every `SUM_BLOCK` entries of the whole row, and is left without the head; `head` is
/// ascending. Empty where the head leaves too little to draw from.
#[inline(always)]
pub(super) fn draw(
    row: &[f32],
    max: f32,
    head: &[u32],
    parts: &mut [f64],
    uniforms: &[f64],
    exps: &mut Vec<f32>,
) -> Draws {
    let mut draws = Draws::new();
    exps.resize(SUM_BLOCK, 0.0);
    let total_of_row: f64 = parts.iter().sum();
    for (index, (part, values)) in parts.iter_mut().zip(row.chunks(SUM_BLOCK)).enumerate() {
        let without = inside(head, index);
        if !without.is_empty() {
            // Taking the head off a sum would cancel all its digits, so what is left is added up anew.
            *part = part_exponentials(values, max, index, without, exps);
        }
    }
    let total: f64 = parts.iter().sum();
    if total <= TAIL_MASS_MIN * total_of_row {
        return draws;
    }
    let Some(last) = parts
        .iter()
        .rposition(|part| *part > PART_SHARE_MIN * total)
    else {
        return draws;
    };
    let (mut before, mut left) = (0.0, uniforms);
    for (index, (&part, values)) in parts.iter().zip(row.chunks(SUM_BLOCK)).enumerate() {
        if left.is_empty() {
            break;
        }
        if part <= PART_SHARE_MIN * total {
            continue;
        }
        // The last part takes what rounding of the running sum may leave over.
        let count = if index == last {
            left.len()
        } else {
            left.partition_point(|u| u * total < before + part)
        };
        let (here, after) = left.split_at(count);
        if !here.is_empty() {
            let sum = part_exponentials(values, max, index, inside(head, index), exps);
            // Rounding below zero would end at an entry without weight.
            let fractions = here.iter().map(|u| ((u * total - before) / part).max(0.0));
            let exps = exps.get(..values.len()).unwrap_or_default();
            draw_in_part(exps, sum, (index * SUM_BLOCK) as u32, fractions, &mut draws);
        }
        (before, left) = (before + part, after);
    }
    draws
}

/// The ids of `head`, ascending, that lie in the part at `index`.
#[inline(always)]
fn inside(head: &[u32], index: usize) -> &[u32] {
    let place = |end: usize| head.partition_point(|&id| (id as usize) < end);
    let (start, end) = (place(index * SUM_BLOCK), place((index + 1) * SUM_BLOCK));
    head.get(start..end).unwrap_or_default()
}

#[inline(always)]
fn part_exponentials(
    values: &[f32],
    max: f32,
    index: usize,
    without: &[u32],
    exps: &mut [f32],
) -> f64 {
    let places = without.iter().map(|&id| id as usize - index * SUM_BLOCK);
    let exps = exps.get_mut(..values.len()).unwrap_or_default();
    exponentials(values, max, places, exps)
}

/// Adds a draw for every fraction, ascending, of the `sum` over `exps`; `first` is the id of the part's first entry.
#[inline(always)]
fn draw_in_part(
    exps: &[f32],
    sum: f64,
    first: u32,
    fractions: impl Iterator<Item = f64>,
    draws: &mut Draws,
) {
    // Past the last entry with any weight there is nothing to draw, whatever rounding says.
    let last = exps.iter().rposition(|exp| *exp > 0.0).unwrap_or_default();
    let weight = |place: usize| exps.get(place).copied().map_or(0.0, f64::from);
    let mut place = 0;
    let mut reached = weight(0);
    for fraction in fractions {
        let target = fraction * sum;
        while reached <= target && place < last {
            place += 1;
            reached += weight(place);
        }
        let id = first + place as u32;
        match draws.last_mut() {
            Some((drawn, count)) if *drawn == id => *count += 1,
            _ => draws.push((id, 1)),
        }
    }
}
