//! Provides the sum of numbers over all ranks, in the order of the ranks whatever the network does.
//!
//! Each rank adds up one piece of every part, beginning with rank 0's numbers, and gives the sums to all. So a rank sends and
//! receives `2 (n - 1) / n` of the numbers, and every number is added in the same order, in every run and every rank: MPI's own
//! reductions may take another order for another network or another number of bytes.

use super::Ranks;

/// Bytes that are exchanged at a time: MPI counts to 2^31, and what is received takes as much memory again.
const PART_BYTES: usize = 16 << 20;

/// Adds up every number over all ranks; each has as many.
pub(crate) fn sum(ranks: &dyn Ranks, numbers: &mut Vec<f32>) {
    sum_in_parts(ranks, numbers, PART_BYTES / size_of::<f32>());
}

fn sum_in_parts(ranks: &dyn Ranks, numbers: &mut Vec<f32>, part: usize) {
    let (count, length) = (ranks.count(), numbers.len());
    if count == 1 {
        return;
    }
    // As many for every rank.
    numbers.resize(length.next_multiple_of(count), 0.0);
    let part = count * (part / count).max(1);
    let mut theirs = vec![0.0f32; part.min(numbers.len())];
    for own in numbers.chunks_mut(part) {
        let theirs = &mut theirs[..own.len()];
        ranks.exchange(bytemuck::cast_slice(own), bytemuck::cast_slice_mut(theirs));
        let (sums, others) = theirs.split_at_mut(own.len() / count);
        for other in others.chunks_exact(sums.len()) {
            for (sum, number) in sums.iter_mut().zip(other) {
                *sum += number;
            }
        }
        ranks.gather(bytemuck::cast_slice(sums), bytemuck::cast_slice_mut(own));
    }
    numbers.truncate(length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::threads;

    /// Numbers of very different sizes, whose sum depends on the order.
    fn numbers(rank: usize, length: usize) -> Vec<f32> {
        let number = |i: usize| {
            let mixed = (i * 2_654_435_761 + rank * 40_503) % 1_000_003;
            (mixed as f32 - 5e5) * 10f32.powi((mixed % 13) as i32 - 6)
        };
        (0..length).map(number).collect()
    }

    #[test]
    fn every_rank_has_the_same_bits_added_in_the_order_of_the_ranks() {
        for count in [1, 2, 3, 4, 7] {
            for length in [0, 1, 5, 64, 1000] {
                let mut expected = numbers(0, length);
                for rank in 1..count {
                    for (sum, number) in expected.iter_mut().zip(numbers(rank, length)) {
                        *sum += number;
                    }
                }
                // However much is exchanged at a time.
                for part in [1, 16, 1 << 20] {
                    let found = threads::run(count, |ranks| {
                        let mut own = numbers(ranks.rank(), length);
                        sum_in_parts(ranks, &mut own, part);
                        own
                    });
                    let bits = |numbers: &[f32]| -> Vec<u32> {
                        numbers.iter().map(|number| number.to_bits()).collect()
                    };
                    for own in &found {
                        assert_eq!(bits(own), bits(&expected), "{count} ranks, {length}");
                    }
                }
            }
        }
    }

    #[test]
    fn one_rank_s_nan_is_every_rank_s() {
        let found = threads::run(2, |ranks| {
            let mut own = vec![1.0, if ranks.is_first() { 1.0 } else { f32::NAN }];
            sum(ranks, &mut own);
            own
        });
        assert!(found.iter().all(|own| own[0] == 2.0 && own[1].is_nan()));
    }
}
