//! Provides the inner loops of the losses, written so that the compiler vectorises them for the CPU at hand.
//!
//! `pulp` picks the widest instruction set at run time (as `gemm` does for candle's matmul); every loop here is
//! `inline(always)` so that it is compiled once for each set. All of them read their inputs once, in order, and give
//! the same bits whatever the number of threads.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

/// Lanes of the partial sums: a multiple of every vector width, so that sums do not depend on the CPU.
const LANES: usize = 16;

/// Defines a function whose body is compiled for every instruction set and run with the widest one of this CPU.
///
/// The body becomes a method marked `inline(always)`: that of a closure or of a function passed as a value would stay a
/// function of its own, compiled for the narrowest vectors.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$life:lifetime $(, $real:ident)?>(
        $($argument:ident: $kind:ty),* $(,)?
    ) -> $output:ty $body:block) => {
        $(#[$meta])*
        $vis fn $name<$life $(, $real: $crate::loss::simd::Real)?>($($argument: $kind),*) -> $output {
            struct Body<$life $(, $real)?> {
                $($argument: $kind),*
            }
            impl<$life $(, $real: $crate::loss::simd::Real)?> pulp::WithSimd for Body<$life $(, $real)?> {
                type Output = $output;
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> $output {
                    let Self { $($argument),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Body { $($argument),* })
        }
    };
}
pub(crate) use vectorized;

/// f32 or f64, as far as the solver needs them.
pub(crate) trait Real:
    Copy
    + Default
    + Send
    + Sync
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + Sum
    + 'static
{
    /// Largest magnitude of a logarithm of a scaling before it moves into the potentials. Twice this and the range in
    /// which `exp` does not underflow leave lost entries below e^-40 of their row.
    const SCALING_LOG_MAX: f64;
    /// Relative size at which rounding of one pass drowns progress.
    const ROUNDING: f64;
    /// Rounds to this type.
    fn from_f64(value: f64) -> Self;
    /// Widens; exact.
    fn from_f32(value: f32) -> Self;
    /// Widens; exact.
    fn to_f64(self) -> f64;
    /// Rounds all to f32; free where they are.
    fn into_f32(values: Vec<Self>) -> Vec<f32>;
    /// Four dot products of equal lengths; the compiler does not find this one by itself.
    fn dot4<S: pulp::Simd>(simd: S, rows: [&[Self]; 4], x: &[Self]) -> [Self; 4];
    /// e to this power; 0 where it would be subnormal; NaN stays NaN.
    fn exp(self) -> Self;
}

impl Real for f32 {
    const SCALING_LOG_MAX: f64 = 20.0;
    const ROUNDING: f64 = 1e-7;
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn into_f32(values: Vec<Self>) -> Vec<f32> {
        values
    }
    #[inline(always)]
    fn dot4<S: pulp::Simd>(simd: S, rows: [&[Self]; 4], x: &[Self]) -> [Self; 4] {
        let (x, x_rest) = S::as_simd_f32s(x);
        let [a, b, c, d] = rows;
        let (a, a_rest) = S::as_simd_f32s(a);
        let (b, b_rest) = S::as_simd_f32s(b);
        let (c, c_rest) = S::as_simd_f32s(c);
        let (d, d_rest) = S::as_simd_f32s(d);
        let zero = simd.splat_f32s(0.0);
        let (mut sa, mut sb, mut sc, mut sd) = (zero, zero, zero, zero);
        for ((((&x, &a), &b), &c), &d) in x.iter().zip(a).zip(b).zip(c).zip(d) {
            sa = simd.mul_add_e_f32s(a, x, sa);
            sb = simd.mul_add_e_f32s(b, x, sb);
            sc = simd.mul_add_e_f32s(c, x, sc);
            sd = simd.mul_add_e_f32s(d, x, sd);
        }
        let rest = |row: &[Self]| row.iter().zip(x_rest).map(|(k, x)| k * x).sum::<Self>();
        [
            simd.reduce_sum_f32s(sa) + rest(a_rest),
            simd.reduce_sum_f32s(sb) + rest(b_rest),
            simd.reduce_sum_f32s(sc) + rest(c_rest),
            simd.reduce_sum_f32s(sd) + rest(d_rest),
        ]
    }
    #[inline(always)]
    fn exp(self) -> Self {
        distill_model::simd::exp(self)
    }
}

impl Real for f64 {
    const SCALING_LOG_MAX: f64 = 200.0;
    const ROUNDING: f64 = 1e-15;
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f64::from(value)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    fn into_f32(values: Vec<Self>) -> Vec<f32> {
        values.into_iter().map(|x| x as f32).collect()
    }
    #[inline(always)]
    fn dot4<S: pulp::Simd>(simd: S, rows: [&[Self]; 4], x: &[Self]) -> [Self; 4] {
        let (x, x_rest) = S::as_simd_f64s(x);
        let [a, b, c, d] = rows;
        let (a, a_rest) = S::as_simd_f64s(a);
        let (b, b_rest) = S::as_simd_f64s(b);
        let (c, c_rest) = S::as_simd_f64s(c);
        let (d, d_rest) = S::as_simd_f64s(d);
        let zero = simd.splat_f64s(0.0);
        let (mut sa, mut sb, mut sc, mut sd) = (zero, zero, zero, zero);
        for ((((&x, &a), &b), &c), &d) in x.iter().zip(a).zip(b).zip(c).zip(d) {
            sa = simd.mul_add_e_f64s(a, x, sa);
            sb = simd.mul_add_e_f64s(b, x, sb);
            sc = simd.mul_add_e_f64s(c, x, sc);
            sd = simd.mul_add_e_f64s(d, x, sd);
        }
        let rest = |row: &[Self]| row.iter().zip(x_rest).map(|(k, x)| k * x).sum::<Self>();
        [
            simd.reduce_sum_f64s(sa) + rest(a_rest),
            simd.reduce_sum_f64s(sb) + rest(b_rest),
            simd.reduce_sum_f64s(sc) + rest(c_rest),
            simd.reduce_sum_f64s(sd) + rest(d_rest),
        ]
    }
    /// As for f32 with the Taylor polynomial of degree 12, whose remainder at |r| <= ln(2)/2 is 2e-16.
    #[inline(always)]
    fn exp(self) -> Self {
        const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
        let x = if self > 709.0 { 709.0 } else { self };
        let shifted = x * std::f64::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = (x - n * 6.931_471_803_691_238e-1) - n * 1.908_214_929_270_587_7e-10;
        let mut p = 1.0 / 479_001_600.0;
        p = p * r + 1.0 / 39_916_800.0;
        p = p * r + 1.0 / 3_628_800.0;
        p = p * r + 1.0 / 362_880.0;
        p = p * r + 1.0 / 40_320.0;
        p = p * r + 1.0 / 5_040.0;
        p = p * r + 1.0 / 720.0;
        p = p * r + 1.0 / 120.0;
        p = p * r + 1.0 / 24.0;
        p = p * r + 1.0 / 6.0;
        p = p * r + 0.5;
        let mantissa = (p * r * r + r) + 1.0;
        let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
        if x < -708.0 { 0.0 } else { mantissa * power }
    }
}

/// `out_j = exp((base - cost_j) / epsilon + row + column_j)`.
///
/// The base, a cost of the same row, is taken off before anything is rounded: f32 then keeps its digits for the
/// differences, which are all that a plan depends on.
#[inline(always)]
pub(crate) fn gibbs_row<R: Real>(
    out: &mut [R],
    cost: &[f32],
    (base, row): (f32, R),
    column: &[R],
    inverse_epsilon: R,
) {
    let base = R::from_f32(base);
    for ((out, &cost), &column) in out.iter_mut().zip(cost).zip(column) {
        *out = (((base - R::from_f32(cost)) * inverse_epsilon + row) + column).exp();
    }
}

/// Elements of one running sum: bounds what f32 loses on a CPU with short vectors.
const SEGMENT: usize = 1024;

/// `sum_j k_j x_j` for four rows at once, so that x is loaded once.
#[inline(always)]
pub(crate) fn dot4<S: pulp::Simd, R: Real>(simd: S, rows: [&[R]; 4], x: &[R]) -> [R; 4] {
    let mut total = [R::default(); 4];
    for start in (0..x.len()).step_by(SEGMENT) {
        let segment = start..(start + SEGMENT).min(x.len());
        let [a, b, c, d] = rows;
        let rows = [
            &a[segment.clone()],
            &b[segment.clone()],
            &c[segment.clone()],
            &d[segment.clone()],
        ];
        let sums = R::dot4(simd, rows, &x[segment]);
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += sum;
        }
    }
    total
}

/// `out_j += sum_r w_r k_rj` for four rows at once, so that out is loaded and stored once.
#[inline(always)]
pub(crate) fn add_rows4<R: Real>(out: &mut [R], rows: [&[R]; 4], weights: [R; 4]) {
    let m = out.len();
    let [a, b, c, d] = rows.map(|row| &row[..m]);
    let [wa, wb, wc, wd] = weights;
    for j in 0..m {
        out[j] += (wa * a[j] + wb * b[j]) + (wc * c[j] + wd * d[j]);
    }
}

/// `out_j += w k_j`.
#[inline(always)]
pub(crate) fn add_row<R: Real>(out: &mut [R], row: &[R], weight: R) {
    for (out, &k) in out.iter_mut().zip(row) {
        *out += weight * k;
    }
}

/// Folds a slice in lanes; `step` must not mind the order.
#[inline(always)]
pub(crate) fn lanes_fold(values: &[f32], start: f32, step: impl Fn(f32, f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = step(lanes[lane], chunk[lane]);
        }
    }
    lanes
        .into_iter()
        .chain(rest.iter().copied())
        .fold(start, step)
}

vectorized! {
    /// The largest element; `-inf` of an empty slice. NaN is passed over: a later sum finds it.
    pub(crate) fn max<'a>(values: &'a [f32]) -> f32 {
        lanes_fold(values, f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
}

vectorized! {
    /// Replaces every z by `exp((z - max) * scale)` and returns their sum, added in f64 by pieces of 1024.
    pub(crate) fn exp_in_place<'a>(values: &'a mut [f32], max: f32, scale: f32) -> f64 {
        let mut total = 0.0;
        for piece in values.chunks_mut(1024) {
            let mut lanes = [0.0_f32; LANES];
            let mut chunks = piece.chunks_exact_mut(LANES);
            for chunk in &mut chunks {
                for lane in 0..LANES {
                    let e = Real::exp((chunk[lane] - max) * scale);
                    chunk[lane] = e;
                    lanes[lane] += e;
                }
            }
            let mut sum: f32 = lanes.into_iter().sum();
            for z in chunks.into_remainder() {
                *z = Real::exp((*z - max) * scale);
                sum += *z;
            }
            total += f64::from(sum);
        }
        total
}
}

vectorized! {
    /// `(sum exp(z - max), sum exp((z - max) * scale))` without a change, added as in [`exp_in_place`].
    pub(crate) fn exp_sums<'a>(values: &'a [f32], max: f32, scale: f32) -> (f64, f64) {
        let (mut total, mut total_scaled) = (0.0, 0.0);
        for piece in values.chunks(1024) {
            let (mut lanes, mut lanes_scaled) = ([0.0_f32; LANES], [0.0_f32; LANES]);
            let chunks = piece.chunks_exact(LANES);
            let (mut sum, mut sum_scaled) = (0.0, 0.0);
            for &z in chunks.remainder() {
                sum += Real::exp(z - max);
                sum_scaled += Real::exp((z - max) * scale);
            }
            for chunk in chunks {
                for lane in 0..LANES {
                    lanes[lane] += Real::exp(chunk[lane] - max);
                    lanes_scaled[lane] += Real::exp((chunk[lane] - max) * scale);
                }
            }
            total += f64::from(sum + lanes.into_iter().sum::<f32>());
            total_scaled += f64::from(sum_scaled + lanes_scaled.into_iter().sum::<f32>());
        }
        (total, total_scaled)
}
}

vectorized! {
    /// `z <- a exp(z - max) + b exp((z - max) * scale)` with factors `[a, b]`.
    pub(crate) fn combine_exps<'a>(values: &'a mut [f32], max: f32, scale: f32, factors: [f32; 2]) -> () {
        for z in values {
            let x = *z - max;
            *z = factors[0] * Real::exp(x) + factors[1] * Real::exp(x * scale);
        }
}
}

vectorized! {
    /// `z <- a z`.
    pub(crate) fn scale_in_place<'a>(values: &'a mut [f32], factor: f32) -> () {
        for z in values {
            *z *= factor;
        }
}
}

#[cfg(test)]
mod tests {
    use super::*;

    struct WideDots<'a> {
        rows: [&'a [f64]; 4],
        x: &'a [f64],
    }

    impl pulp::WithSimd for WideDots<'_> {
        type Output = [f64; 4];
        fn with_simd<S: pulp::Simd>(self, simd: S) -> [f64; 4] {
            dot4(simd, self.rows, self.x)
        }
    }

    #[test]
    fn exponentials_agree_with_the_standard_library() {
        for step in -8_700..8_700 {
            let x = f64::from(step) * 0.01;
            let relative = (Real::exp(x) / x.exp() - 1.0).abs();
            assert!(relative < 1e-15, "{x}: {relative}");
            let x32 = x as f32;
            let relative = (f64::from(Real::exp(x32)) / f64::from(x32).exp() - 1.0).abs();
            assert!(relative < 2.5e-7, "{x32}: {relative}");
        }
        assert!(Real::exp(f32::NAN).is_nan() && Real::exp(f64::NAN).is_nan());
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(-1e30_f64), 0.0);
    }

    #[test]
    fn loops_agree_with_their_definition_at_ragged_lengths() {
        for m in [0, 1, 15, 16, 17, 100, 1024, 2051] {
            let rows: Vec<Vec<f64>> = (0..4)
                .map(|r| (0..m).map(|j| f64::from(j * 7 % 5 + r)).collect())
                .collect();
            let x: Vec<f64> = (0..m).map(|j| f64::from(j % 3) - 1.0).collect();
            let refs = [&rows[0][..], &rows[1], &rows[2], &rows[3]];
            let dots = dot4(pulp::Scalar::new(), refs, &x);
            let wide = pulp::Arch::new().dispatch(WideDots { rows: refs, x: &x });
            let mut out = vec![0.5; m as usize];
            add_rows4(&mut out, refs, [1.0, 2.0, -1.0, 0.5]);
            for r in 0..4 {
                let expected: f64 = rows[r].iter().zip(&x).map(|(a, b)| a * b).sum();
                assert_eq!(dots[r], expected);
                assert_eq!(wide[r], expected);
            }
            for j in 0..m as usize {
                let expected = 0.5 + rows[0][j] + 2.0 * rows[1][j] - rows[2][j] + 0.5 * rows[3][j];
                assert_eq!(out[j], expected);
            }
        }
    }
}
