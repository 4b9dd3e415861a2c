//! Provides inner loops compiled for every vector width, the widest of which is chosen at run time, and an `exp` for them.

/// Defines a function whose body is compiled for every instruction set (AVX-512, AVX2, the baseline) and run with the widest
/// one of this CPU. The body must be plain loops over slices, which the compiler turns into vector code.
///
/// The body becomes a method marked `inline(always)`: that of a closure would stay a function of its own, for the narrowest
/// vectors.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$life:lifetime $(, $element:ident)?>(
        $($argument:ident: $kind:ty),* $(,)?
    ) $(-> $output:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$life $(, $element: $crate::element::Element)?>($($argument: $kind),*) $(-> $output)? {
            struct Body<$life $(, $element: $crate::element::Element)?> {
                $($argument: $kind),*
            }
            impl<$life $(, $element: $crate::element::Element)?> pulp::WithSimd for Body<$life $(, $element)?> {
                type Output = $crate::simd::output!($($output)?);
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
                    let Self { $($argument),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Body { $($argument),* })
        }
    };
}
pub(crate) use vectorized;

/// The type of a body's value, `()` where none is named.
macro_rules! output {
    () => {
        ()
    };
    ($output:ty) => {
        $output
    };
}
pub(crate) use output;

/// e^x within 2 units in the last place; 0 below -87, where it would soon be subnormal; at most e^88; NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by the polynomial of Cephes' `expf`; 2^n through the exponent bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer, which then sits in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 as a short head, so that `n * HEAD` is exact, and a tail (Cody and Waite).
    const LN_2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
    let clamped = if x > 88.0 { 88.0 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2[0]) - n * LN_2[1];
    let mut p = 1.987_569_1e-4f32;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_66,
        0.5,
    ] {
        p = p * r + coefficient;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let e = (p * r * r + r + 1.0) * power;
    if x < -87.0 { 0.0 } else { e }
}

/// `1 / (1 + e^-x)`, from the power that cannot overflow.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// Lanes of the partial sums: a multiple of every vector width, so that sums do not depend on the CPU.
const LANES: usize = 16;

/// Sum of `term(i)` over `0..len` in running sums that the compiler can vectorise.
///
/// The order is fixed by `len` alone, so the result does not depend on the number of threads.
#[inline(always)]
pub(crate) fn lane_sum(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = len - len % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    let tail: f32 = (whole..len).map(&term).sum();
    lanes.iter().sum::<f32>() + tail
}

vectorized! {
    /// Turns a row of scores into probabilities in place; the row is never empty, since a position sees itself.
    pub(crate) fn softmax<'a>(row: &'a mut [f32]) {
        let (chunks, rest) = row.as_chunks::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in chunks {
            for (max, x) in lanes.iter_mut().zip(chunk) {
                *max = if *x > *max { *x } else { *max };
            }
        }
        let max = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
        for x in row.iter_mut() {
            *x = exp(*x - max);
        }
        let sum = lane_sum(row.len(), |i| row[i]);
        let scale = 1.0 / sum;
        for x in row {
            *x *= scale;
        }
    }
}

vectorized! {
    /// Turns dP into dS = P (dP - sum(P dP)) in place.
    pub(crate) fn softmax_gradient<'a>(p: &'a [f32], grad: &'a mut [f32]) {
        let (p, len) = (&p[..grad.len()], grad.len());
        let mean = lane_sum(len, |j| p[j] * grad[j]);
        for (grad, p) in grad.iter_mut().zip(p) {
            *grad = p * (*grad - mean);
        }
    }
}

vectorized! {
    /// `out += x`.
    pub(crate) fn add_to<'a>(out: &'a mut [f32], x: &'a [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for i in -435_000..435_000 {
            let x = i as f32 * 2e-4;
            worst = worst.max((f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs());
        }
        assert!(worst < 2.5e-7, "{worst:e}");
        assert_eq!(
            (exp(0.0), exp(-200.0), exp(f32::NEG_INFINITY)),
            (1.0, 0.0, 0.0)
        );
        assert!(exp(f32::NAN).is_nan() && exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn rows_of_every_length_agree_with_their_definition() {
        for len in [1, 2, 15, 16, 17, 33, 64, 100] {
            let scores: Vec<f32> = (0..len).map(|i| (i as f32 * 1.7).sin() * 9.0).collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps: Vec<f64> = scores.iter().map(|x| f64::from(x - max).exp()).collect();
            let sum: f64 = exps.iter().sum();
            let mut p = scores.clone();
            softmax(&mut p);
            let grad: Vec<f32> = (0..len).map(|i| (i as f32 * 0.3).cos()).collect();
            let mean: f64 = exps
                .iter()
                .zip(&grad)
                .map(|(e, g)| e / sum * f64::from(*g))
                .sum();
            let mut ds = grad.clone();
            softmax_gradient(&p, &mut ds);
            for i in 0..len {
                assert!((f64::from(p[i]) - exps[i] / sum).abs() < 3e-7);
                let expected = exps[i] / sum * (f64::from(grad[i]) - mean);
                assert!((f64::from(ds[i]) - expected).abs() < 1e-6);
            }
        }
    }
}
