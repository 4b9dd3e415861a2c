/*! Provides the solution of symmetric positive definite equations in f64 by Cholesky's factor, block by block.

Within a block of columns the factor is made entry by entry; what it changes in the rest is one matrix product, and so is
what earlier blocks change in a block of right-hand sides: nearly all work is in products.
*/

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::loss::error::{LossError, Result};

/// Columns of a block.
const BLOCK: usize = 64;

/// L of `A + ridge I = L L^T`.
pub(super) struct Factor {
    n: usize,
    /// `[n, n]`, row-major; above the diagonal lies what was there.
    lower: Vec<f64>,
}

impl Factor {
    /// Of A `[n, n]`, of which the lower half is read.
    ///
    /// # Errors
    /// A matrix that is not positive definite, or holds NaN.
    pub(super) fn new(matrix: &Tensor, ridge: f64) -> Result<Self> {
        let n = matrix.dims2()?.0;
        let lower = matrix.flatten_all()?.to_vec1()?;
        let mut factor = Self { n, lower };
        for i in 0..n {
            factor.lower[i * n + i] += ridge;
        }
        for start in (0..n).step_by(BLOCK) {
            let end = (start + BLOCK).min(n);
            factor.eliminate(start, end)?;
            factor.update(start, end)?;
        }
        Ok(factor)
    }

    /// The factor's columns `start..end`; earlier ones are taken off already.
    fn eliminate(&mut self, start: usize, end: usize) -> Result<()> {
        let n = self.n;
        for j in start..end {
            let (above, below) = self.lower.split_at_mut((j + 1) * n);
            let row = &mut above[j * n..];
            let taken: f64 = row[start..j].iter().map(|l| l * l).sum();
            let pivot = row[j] - taken;
            // NaN is not above 0.
            if !(pivot > 0.0 && pivot.is_finite()) {
                return Err(LossError::NonFinite {
                    what: "fitted projection",
                    position: j,
                });
            }
            row[j] = pivot.sqrt();
            let row = &*row;
            below
                .par_chunks_mut(n)
                .with_min_len(BLOCK)
                .for_each(|other| {
                    let pairs = other[start..j].iter().zip(&row[start..j]);
                    let taken: f64 = pairs.map(|(a, b)| a * b).sum();
                    other[j] = (other[j] - taken) / row[j];
                });
        }
        Ok(())
    }

    /// Takes the columns `start..end` off all later ones.
    fn update(&mut self, start: usize, end: usize) -> Result<()> {
        let n = self.n;
        if end == n {
            return Ok(());
        }
        let panel = self.part(end..n, start..end)?;
        let taken: Vec<f64> = panel.matmul(&panel.t()?)?.flatten_all()?.to_vec1()?;
        let rows = self.lower[end * n..]
            .chunks_mut(n)
            .zip(taken.chunks(n - end));
        for (i, (row, taken)) in rows.enumerate() {
            for (entry, taken) in row[end..=end + i].iter_mut().zip(taken) {
                *entry -= taken;
            }
        }
        Ok(())
    }

    /// Rows and columns of L, below the diagonal.
    fn part(
        &self,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
    ) -> Result<Tensor> {
        let size = (rows.len(), columns.len());
        let row = |i: usize| &self.lower[i * self.n..][columns.clone()];
        let part: Vec<f64> = rows.flat_map(row).copied().collect();
        Ok(Tensor::from_vec(part, size, &Device::Cpu)?)
    }

    /// X of `L L^T X = B`, both `[n, columns]`.
    pub(super) fn solve(&self, rhs: &Tensor) -> Result<Tensor> {
        let (n, width) = rhs.dims2()?;
        let mut x: Vec<f64> = rhs.flatten_all()?.to_vec1()?;
        for start in (0..n).step_by(BLOCK) {
            let end = (start + BLOCK).min(n);
            if start > 0 {
                let known = Tensor::from_slice(&x[..start * width], (start, width), &Device::Cpu)?;
                let taken = self.part(start..end, 0..start)?.matmul(&known)?;
                subtract(&mut x[start * width..end * width], &taken)?;
            }
            for i in start..end {
                let (known, rest) = x.split_at_mut(i * width);
                let row = &mut rest[..width];
                for k in start..i {
                    subtract_row(row, &known[k * width..(k + 1) * width], self.at(i, k));
                }
                row.iter_mut().for_each(|x| *x /= self.at(i, i));
            }
        }
        for start in (0..n).step_by(BLOCK).rev() {
            let end = (start + BLOCK).min(n);
            if end < n {
                let size = (n - end, width);
                let known = Tensor::from_slice(&x[end * width..], size, &Device::Cpu)?;
                let taken = self.part(end..n, start..end)?.t()?.matmul(&known)?;
                subtract(&mut x[start * width..end * width], &taken)?;
            }
            for i in (start..end).rev() {
                let (rest, known) = x.split_at_mut((i + 1) * width);
                let row = &mut rest[i * width..];
                for k in i + 1..end {
                    let known = &known[(k - i - 1) * width..(k - i) * width];
                    subtract_row(row, known, self.at(k, i));
                }
                row.iter_mut().for_each(|x| *x /= self.at(i, i));
            }
        }
        Ok(Tensor::from_vec(x, (n, width), &Device::Cpu)?)
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.lower[i * self.n + j]
    }
}

fn subtract(from: &mut [f64], taken: &Tensor) -> Result<()> {
    let taken: Vec<f64> = taken.flatten_all()?.to_vec1()?;
    for (x, taken) in from.iter_mut().zip(taken) {
        *x -= taken;
    }
    Ok(())
}

fn subtract_row(from: &mut [f64], row: &[f64], factor: f64) {
    for (x, known) in from.iter_mut().zip(row) {
        *x -= factor * known;
    }
}
