//! Provides an `exp` for non-positive arguments that compilers turn into vector code.

/// Below this the result is taken as zero: e^-87 is 1.6e-38, 31 decades under what changes an f32 sum of a row.
const ARGUMENT_MIN: f32 = -87.0;
/// Adding and subtracting it rounds to an integer, which then sits in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;
/// ln 2 as a short head and a tail, so that `n * HEAD` is exact (Cody and Waite).
const LN_2_HEAD: f32 = 0.693_359_375;
const LN_2_TAIL: f32 = -2.121_944_4e-4;

/// e^x for x <= 0, relative error below 2e-7.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by the polynomial of Cephes' `expf`; 2^n through the exponent bits.
#[inline(always)]
pub(super) fn exp_non_positive(x: f32) -> f32 {
    let clamped = if x < ARGUMENT_MIN { ARGUMENT_MIN } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HEAD) - n * LN_2_TAIL;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_66;
    p = p * r + 0.5;
    let e_r = (p * r) * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let two_n = f32::from_bits(exponent.wrapping_add(127) << 23);
    if x < ARGUMENT_MIN { 0.0 } else { e_r * two_n }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_within_two_units_in_the_last_place_of_the_library_exp() {
        let mut worst = 0f64;
        for i in 0..400_000 {
            let x = -(i as f32) * 2.1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp_non_positive(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2e-7, "relative error {worst:e}");
        assert_eq!(exp_non_positive(0.0), 1.0);
        assert_eq!(exp_non_positive(-200.0), 0.0);
        assert_eq!(exp_non_positive(f32::MIN), 0.0);
    }
}
