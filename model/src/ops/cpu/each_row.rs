//! Provides the product of a few rows with a matrix, in which no row's sums depend on the others: what a sequence is continued with
//! is the same whoever shares its batch. A general product chooses its order by its shape.

use super::matmul::Store;
use crate::simd::vectorized;

/// Lanes of the partial sums, as everywhere: a multiple of every vector width, so that sums do not depend on the CPU.
const LANES: usize = 16;
/// Rows of x that read a row of the matrix together.
const ROWS: usize = 4;

/// `scale x W^T` into `out`, or added to it.
///
/// # Shapes
/// x [rows, width], w [height, width], out [rows, height]
pub(super) fn product(
    out: &mut [f32],
    store: Store,
    scale: f32,
    x: &[f32],
    w: &[f32],
    width: usize,
) {
    if width > 0 {
        sums(out, store, scale, x, w, width);
    }
}

vectorized! {
    fn sums<'a>(
        out: &'a mut [f32],
        store: Store,
        scale: f32,
        x: &'a [f32],
        w: &'a [f32],
        width: usize,
    ) {
        let height = w.len() / width;
        for (column, w) in w.chunks_exact(width).enumerate() {
            let mut put = |row: usize, sum: f32| {
                let out = &mut out[row * height + column];
                *out = scale * sum + if store == Store::Add { *out } else { 0.0 };
            };
            let fours = x.chunks_exact(ROWS * width);
            let (rest, done) = (fours.remainder(), x.len() / (ROWS * width) * ROWS);
            for (four, x) in fours.enumerate() {
                for (row, sum) in dots::<ROWS>(x, w).into_iter().enumerate() {
                    put(four * ROWS + row, sum);
                }
            }
            for (row, x) in rest.chunks_exact(width).enumerate() {
                let [sum] = dots::<1>(x, w);
                put(done + row, sum);
            }
        }
    }
}

/// The inner product of each of `COUNT` rows with w, each summed in the same order.
///
/// # Shapes
/// x [COUNT, width], w [width]
#[inline(always)]
fn dots<const COUNT: usize>(x: &[f32], w: &[f32]) -> [f32; COUNT] {
    let width = w.len();
    let mut lanes = [[0f32; LANES]; COUNT];
    let whole = width - width % LANES;
    for start in (0..whole).step_by(LANES) {
        let w = &w[start..start + LANES];
        for (row, lanes) in lanes.iter_mut().enumerate() {
            let x = &x[row * width + start..row * width + start + LANES];
            for (sum, (x, w)) in lanes.iter_mut().zip(x.iter().zip(w)) {
                *sum += x * w;
            }
        }
    }
    std::array::from_fn(|row| {
        let x = &x[row * width..(row + 1) * width];
        let tail: f32 = x[whole..].iter().zip(&w[whole..]).map(|(x, w)| x * w).sum();
        lanes[row].iter().sum::<f32>() + tail
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, by: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * by).sin()).collect()
    }

    #[test]
    fn a_row_is_the_same_to_the_bit_among_others_and_alone() {
        for (height, width) in [(5, 3), (7, 16), (9, 61), (1, 100)] {
            let (x, w) = (numbers(11 * width, 0.37), numbers(height * width, 0.11));
            let mut together = vec![0.5; 11 * height];
            product(&mut together, Store::Add, 2.0, &x, &w, width);
            for (row, x) in x.chunks(width).enumerate() {
                let mut alone = vec![0.5; height];
                product(&mut alone, Store::Add, 2.0, x, &w, width);
                assert_eq!(together[row * height..(row + 1) * height], alone);
                for (out, w) in alone.iter().zip(w.chunks(width)) {
                    let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(x * w)).sum();
                    // Sums of at most 100 numbers below 1, in f32.
                    assert!((f64::from(*out) - 0.5 - 2.0 * exact).abs() < 1e-5);
                }
            }
        }
    }
}
