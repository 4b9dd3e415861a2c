//! Provides the turning of heads by their positions, in place on the CPU.

use rayon::prelude::*;

use crate::Result;
use crate::element::lend;
use crate::rope::Angles;
use crate::simd::vectorized;

/// Rows that one task turns at least.
const TASK_ROWS: usize = 16;

/// Turns rows [rows, heads head_dim], sequence after sequence, or back.
///
/// # Errors
/// Angles that are not on the CPU.
pub(super) fn turn(rows: &mut [f32], heads: usize, angles: &Angles, back: bool) -> Result<()> {
    let (cos, sin) = (lend(&angles.cos), lend(&angles.sin));
    let (cos, sin) = (cos.numbers::<f32>()?, sin.numbers::<f32>()?);
    let half = angles.half;
    let sign = if back { -1.0 } else { 1.0 };
    rows.par_chunks_mut(heads * 2 * half)
        .with_min_len(TASK_ROWS)
        .enumerate()
        .for_each(|(row, x)| {
            let start = (row % angles.positions) * half;
            let part = start..start + half;
            turn_heads(x, &cos[part.clone()], &sin[part], sign);
        });
    Ok(())
}

vectorized! {
    /// Every head of one row.
    fn turn_heads<'a>(row: &'a mut [f32], cos: &'a [f32], sin: &'a [f32], sign: f32) {
        let half = cos.len();
        let sin = &sin[..half];
        for head in row.chunks_exact_mut(2 * half) {
            let (x1, x2) = head.split_at_mut(half);
            let x2 = &mut x2[..half];
            for i in 0..half {
                let (a, b) = (x1[i], x2[i]);
                let (cos, sin) = (cos[i], sign * sin[i]);
                x1[i] = a * cos - b * sin;
                x2[i] = b * cos + a * sin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::turn;
    use crate::reference;
    use crate::rope::{Angles, Rotary};
    use crate::test_support::{largest_difference, random, values};

    fn angles(offset: usize, len: usize) -> Angles {
        let rotary = Rotary::of(vec![1.0, 0.1, 0.01]);
        rotary.angles(offset, len, &Device::Cpu).unwrap()
    }

    fn turned(x: &Tensor, angles: &Angles, back: bool) -> Tensor {
        let mut rows = values(x);
        turn(&mut rows, x.dim(2).unwrap(), angles, back).unwrap();
        Tensor::from_vec(rows, x.shape(), &Device::Cpu).unwrap()
    }

    #[test]
    fn heads_are_turned_as_plain_operations_do_it_bit_for_bit_and_back() {
        let (x, angles) = (random(&[2, 5, 3, 6], 1), angles(300, 5));
        let there = turned(&x, &angles, false);
        assert_eq!(
            values(&there),
            values(&reference::rope(&angles, &x).unwrap())
        );
        // A rotation's gradient is the rotation back; four roundings of numbers below 2.
        assert!(largest_difference(&turned(&there, &angles, true), &x) < 1e-6);
    }

    #[test]
    fn neighbouring_positions_past_256_differ() {
        // Angles in bf16 would make them equal: it holds 8 bits of the position.
        let x = random(&[1, 1, 1, 6], 1);
        let at = |position| turned(&x, &angles(position, 1), false);
        assert!(largest_difference(&at(512), &at(513)) > 0.1);
    }

    #[test]
    fn a_product_of_turned_heads_depends_on_their_distance_only() {
        let (q, k) = (random(&[1, 1, 1, 6], 1), random(&[1, 1, 1, 6], 2));
        let score = |q_at, k_at| {
            let q = turned(&q, &angles(q_at, 1), false);
            let k = turned(&k, &angles(k_at, 1), false);
            values(&(q * k).unwrap()).iter().sum::<f32>()
        };
        assert!((score(7, 3) - score(104, 100)).abs() < 1e-5);
        assert!((score(7, 3) - score(7, 4)).abs() > 1e-2);
    }
}
