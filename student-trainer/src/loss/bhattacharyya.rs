//! Provides the similarity `S_ij = sum_v sqrt(p_jv q_iv)` over the teacher's kept ids, and its way back to the logits.
//!
//! `dS_ij/dz_iu = (sqrt(p_ju q_iu) [u kept in j] - S_ij q_iu) / 2`. q needs the student's logsumexp, so the head is
//! passed over twice: once for S, once for the gradient.

use candle_core::Tensor;

use super::error::Result;
use super::rowwise::each_row;
use super::simd::{exp_in_place, max};
use super::sparse;
use super::teacher::Teacher;

/// S, with what its gradient needs.
pub(crate) struct Bhattacharyya<'a> {
    teacher: &'a Teacher<'a>,
    /// One for every entry; see [`Teacher::roots`].
    roots: Vec<f32>,
    /// `[N]`.
    logsumexp: Vec<f64>,
    /// S `[N, M]`.
    pub(crate) s: Vec<f32>,
}

impl<'a> Bhattacharyya<'a> {
    pub(crate) fn new(teacher: &'a Teacher<'a>) -> Self {
        Self {
            teacher,
            roots: teacher.roots(),
            logsumexp: Vec::new(),
            s: Vec::new(),
        }
    }

    /// Adds the rows of S that belong to a chunk of student logits (used up).
    pub(crate) fn push(&mut self, z: Tensor) -> Result<()> {
        let targets = self.teacher.targets;
        let similarities = |_, z: &mut [f32]| {
            let mut exps = z.to_vec();
            let largest = max(&exps);
            let sum = exp_in_place(&mut exps, largest, 1.0);
            let logsumexp = f64::from(largest) + sum.ln();
            exp_in_place(z, logsumexp as f32, 0.5);
            let mut s = vec![0.0; targets.rows()];
            sparse::dots(z, &targets.ids, &self.roots, &targets.starts, &mut s);
            (logsumexp, s)
        };
        for (logsumexp, s) in each_row(z, similarities)?.1 {
            self.logsumexp.push(logsumexp);
            self.s.extend(s);
        }
        Ok(())
    }

    /// `sum_j g_j dS_ij/dz_i` of one row, from its logits z and g = dL/dS_i `[M]` times `weight`.
    pub(crate) fn backward(&self, i: usize, z: &[f32], gradient: &[f32], weight: f64) -> Vec<f32> {
        let m = gradient.len();
        let half = 0.5 * weight;
        let factors: Vec<f32> = gradient
            .iter()
            .map(|&g| (half * f64::from(g)) as f32)
            .collect();
        let s = &self.s[i * m..(i + 1) * m];
        let share: f64 = gradient
            .iter()
            .zip(s)
            .map(|(&g, &s)| f64::from(g) * f64::from(s))
            .sum();
        let share = (half * share) as f32;
        let targets = self.teacher.targets;
        let mut out = vec![0.0; z.len()];
        sparse::add(
            &mut out,
            &targets.ids,
            &self.roots,
            &targets.starts,
            &factors,
        );
        let mut root = z.to_vec();
        exp_in_place(&mut root, self.logsumexp[i] as f32, 0.5);
        for (out, root) in out.iter_mut().zip(root) {
            *out = root * (*out - share * root);
        }
        out
    }
}
