//! Provides the similarity `S_ij = sum_v sqrt(p_jv q_iv)` over the teacher's kept ids, and its way back to the logits.
//!
//! `dS_ij/dz_iu = (sqrt(p_ju q_iu) [u kept in j] - S_ij q_iu) / 2`. q needs the student's logsumexp, so the head is
//! passed over twice: once for S, once for the gradient.

use candle_core::{D, Tensor};

use super::error::Result;
use super::rowwise::each_row;
use super::simd::{exp_in_place, max};
use super::sparse::{self, DeviceEntries};
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
    /// Both of chunks that are on a device, `[c, M + 1]`.
    on_device: Vec<Tensor>,
}

impl<'a> Bhattacharyya<'a> {
    pub(crate) fn new(teacher: &'a Teacher<'a>) -> Self {
        Self {
            teacher,
            roots: teacher.roots(),
            logsumexp: Vec::new(),
            s: Vec::new(),
            on_device: Vec::new(),
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

    /// The same where the logits are, which are left as they were; [`read`](Self::read) is to follow.
    pub(crate) fn push_on_device(&mut self, z: &Tensor) -> Result<()> {
        let largest = z.max_keepdim(D::Minus1)?;
        let sum = z.broadcast_sub(&largest)?.exp()?.sum_keepdim(D::Minus1)?;
        let logsumexp = (largest + sum.log()?)?;
        let entries = self.entries(z)?;
        let s = entries.dots(&roots(z, &logsumexp)?, self.teacher.rows())?;
        self.on_device.push(Tensor::cat(&[s, logsumexp], 1)?);
        Ok(())
    }

    /// Brings what was made on a device to the host: one wait for all chunks.
    pub(crate) fn read(&mut self) -> Result<()> {
        let rows = Tensor::cat(&std::mem::take(&mut self.on_device), 0)?;
        for row in rows.to_vec2()? {
            if let Some((logsumexp, s)) = row.split_last() {
                self.logsumexp.push(f64::from(*logsumexp));
                self.s.extend(s);
            }
        }
        Ok(())
    }

    fn entries(&self, like: &Tensor) -> Result<DeviceEntries> {
        DeviceEntries::new(self.teacher.targets, &self.roots, like.device())
    }

    /// `weight sum_j g_ij dS_ij/dz_i` `[c, V]` of a chunk of rows from `start` on, where their logits z are.
    ///
    /// # Shapes
    /// `z`: `[c, V]`; `gradient`: g `[c, M]`.
    pub(crate) fn backward_on_device(
        &self,
        start: usize,
        z: &Tensor,
        gradient: &[f32],
        weight: f64,
    ) -> Result<Tensor> {
        let (count, vocab_size) = z.dims2()?;
        let m = self.teacher.rows();
        let shares: Vec<f32> = gradient
            .chunks(m)
            .zip(self.s[start * m..].chunks(m))
            .map(|(gradient, s)| share(gradient, s, weight))
            .collect();
        let logsumexp: Vec<f32> = self.logsumexp[start..start + count]
            .iter()
            .map(|&logsumexp| logsumexp as f32)
            .collect();
        let column = |values| Tensor::from_vec(values, (count, 1), z.device());
        let factors = Tensor::from_slice(gradient, (count, m), z.device())?;
        let kept = self
            .entries(z)?
            .sums(&(factors * (0.5 * weight))?, vocab_size)?;
        let roots = roots(z, &column(logsumexp)?)?;
        let through = (kept - roots.broadcast_mul(&column(shares)?)?)?;
        Ok((roots * through)?)
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
        let share = share(gradient, s, weight);
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

/// `weight / 2 sum_j g_j s_j`.
fn share(gradient: &[f32], s: &[f32], weight: f64) -> f32 {
    let terms = gradient.iter().zip(s);
    let sum: f64 = terms.map(|(&g, &s)| f64::from(g) * f64::from(s)).sum();
    (0.5 * weight * sum) as f32
}

/// `sqrt(softmax(z))` `[c, V]` from z and its logsumexp `[c, 1]`.
fn roots(z: &Tensor, logsumexp: &Tensor) -> Result<Tensor> {
    Ok((z.broadcast_sub(logsumexp)? * 0.5)?.exp()?)
}
