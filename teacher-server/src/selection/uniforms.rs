//! Provides the random numbers behind drawn rows: a stream for every row, which nothing but the row's name decides.

use distill_program::random::{GOLDEN_GAMMA, fraction, mix, split_mix};

/// Which row it is: its draws depend on this and the sample seed, so that batches, chunks and threads change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowKey {
    /// Id of the sequence.
    pub sequence: u64,
    /// Position of the target that the row describes.
    pub position: u64,
}

/// SplitMix64 from a state of its own: draws are part of what a plan's fingerprint names.
#[derive(Debug, Clone)]
pub(crate) struct Uniforms(u64);

impl Uniforms {
    /// The stream of one row.
    pub fn new(seed: u64, key: RowKey) -> Self {
        // Every part goes through the finaliser, so that neighbouring rows start far apart.
        let parts = [seed, key.sequence, key.position];
        Self(parts.into_iter().fold(
            0,
            |state, part| mix(state.wrapping_add(GOLDEN_GAMMA) ^ part),
        ))
    }

    /// A number in [0, 1), a multiple of 2^-53.
    pub fn next(&mut self) -> f64 {
        let number = fraction(split_mix(self.0));
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        number
    }

    /// Fills `out` with `count` numbers in ascending order.
    pub fn sorted(mut self, count: usize, out: &mut Vec<f64>) {
        out.clear();
        out.extend((0..count).map(|_| self.next()));
        out.sort_unstable_by(f64::total_cmp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // First output of the reference implementation from state 0.
        let mut uniforms = Uniforms(0);
        let expected = (0xe220_a839_7b1d_cdaf_u64 >> 11) as f64 / (1u64 << 53) as f64;
        assert_eq!(uniforms.next(), expected);
    }

    #[test]
    fn streams_of_neighbouring_rows_are_uniform_and_unrelated() {
        let (mut sum, mut squares, mut products) = (0.0, 0.0, 0.0);
        let count = 40_000;
        for position in 0..count {
            let of = |position| {
                let key = RowKey {
                    sequence: 3,
                    position,
                };
                Uniforms::new(1, key).next() - 0.5
            };
            let (a, b) = (of(position), of(position + 1));
            sum += a;
            squares += a * a;
            products += a * b;
        }
        let n = count as f64;
        // Four standard deviations: 0.289, 0.0745 and 0.0833 over the root of n.
        assert!((sum / n).abs() < 4.0 * 0.289 / n.sqrt());
        assert!((squares / n - 1.0 / 12.0).abs() < 4.0 * 0.0745 / n.sqrt());
        assert!((products / n).abs() < 4.0 * 0.0833 / n.sqrt());
    }

    #[test]
    fn seed_sequence_and_position_all_matter() {
        let first =
            |seed, sequence, position| Uniforms::new(seed, RowKey { sequence, position }).next();
        let values = [
            first(0, 1, 2),
            first(1, 0, 2),
            first(0, 2, 1),
            first(1, 1, 2),
            first(0, 1, 3),
        ];
        for (i, a) in values.iter().enumerate() {
            assert!(values.iter().skip(i + 1).all(|b| a != b));
        }
    }
}
