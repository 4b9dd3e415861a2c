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
