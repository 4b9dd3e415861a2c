//! Provides SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), written out: its
//! numbers are part of captures, corpora and answers, and a library may change its generator.

/// What the state grows by with every number: 2^64 over the golden ratio, made odd.
pub const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The number that follows `state`; the next one follows `state` and [`GOLDEN_GAMMA`].
pub fn split_mix(state: u64) -> u64 {
    mix(state.wrapping_add(GOLDEN_GAMMA))
}

/// The finaliser: a bijection of words in which every bit of the input reaches every bit of the output.
pub fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A number in [0, 1), a multiple of 2^-53, of a word's highest bits.
pub fn fraction(word: u64) -> f64 {
    (word >> 11) as f64 * 0.5f64.powi(53)
}
