//! Provides the random numbers behind drawn rows: a stream for every row, which nothing but the row's name decides.

/// Increment of SplitMix64: 2^64 over the golden ratio, made odd.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Which row it is: its draws depend on this and the sample seed, so that batches, chunks and threads change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowKey {
    /// Id of the sequence.
    pub sequence: u64,
    /// Position of the target that the row describes.
    pub position: u64,
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
///
/// Written out here because draws are part of what a plan's fingerprint names: a library may change its generator.
#[derive(Debug, Clone)]
pub(crate) struct Uniforms(u64);

impl Uniforms {
    /// The stream of one row.
    pub fn new(seed: u64, key: RowKey) -> Self {
        // Every part goes through the finaliser, so that neighbouring rows start far apart.
        let parts = [seed, key.sequence, key.position];
        Self(parts.into_iter().fold(0, |state, part| {
            finalise(state.wrapping_add(GOLDEN_GAMMA) ^ part)
        }))
    }

    /// A number in [0, 1), a multiple of 2^-53.
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        (finalise(self.0) >> 11) as f64 * (0.5f64).powi(53)
    }

    /// Fills `out` with `count` numbers in ascending order.
    pub fn sorted(mut self, count: usize, out: &mut Vec<f64>) {
        out.clear();
        out.extend((0..count).map(|_| self.next()));
        out.sort_unstable_by(f64::total_cmp);
    }
}

/// The mixing function of SplitMix64: every bit of the input reaches every bit of the output.
fn finalise(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
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
