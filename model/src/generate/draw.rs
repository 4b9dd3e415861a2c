//! Provides the random numbers of sampling: each a function of a seed and a place, so that none depends on how many were drawn
//! before or beside it.

/// The golden ratio's fraction, which SplitMix64 counts in.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number in [0, 1) of 53 bits: the `place`-th of the sequence with this seed.
pub fn uniform(seed: u64, place: u64) -> f64 {
    let mixed = mix(mix(seed).wrapping_add(place.wrapping_mul(STEP)));
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

/// SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators", 2014).
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_uniform_over_places_and_over_seeds() {
        const COUNT: u64 = 4000;
        let over_places = |place| uniform(7, place);
        let over_seeds = |seed| uniform(seed, 0);
        for number in [&over_places as &dyn Fn(u64) -> f64, &over_seeds] {
            let mut tenths = [0u32; 10];
            for i in 0..COUNT {
                let drawn = number(i);
                assert!((0.0..1.0).contains(&drawn));
                tenths[(drawn * 10.0) as usize] += 1;
            }
            // 400 each, with a deviation of 19: five of them.
            assert!(
                tenths.iter().all(|count| count.abs_diff(400) < 95),
                "{tenths:?}"
            );
        }
        // The reference implementation's first number of state 0.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
    }
}
