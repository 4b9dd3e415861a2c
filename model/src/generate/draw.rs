//! Provides the random numbers of sampling: each a function of a seed and a place, so that none depends on how many were drawn
//! before or beside it.

use distill_program::random::{GOLDEN_GAMMA, fraction, split_mix};

/// A number in [0, 1) of 53 bits: the `place`-th of the sequence with this seed.
pub fn uniform(seed: u64, place: u64) -> f64 {
    let start = split_mix(seed);
    fraction(split_mix(
        start.wrapping_add(place.wrapping_mul(GOLDEN_GAMMA)),
    ))
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
        assert_eq!(split_mix(0), 0xe220_a839_7b1d_cdaf);
    }
}
