//! Provides the cost matrices: softmax of similarities and its way back, the `kl` cost, and the position prior.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::error::Result;
use super::simd::{exp_in_place, max, scale_in_place};
use super::targets::Alignment;

/// Replaces every row of S by `softmax(row / temperature)`.
///
/// # Shapes
/// `s`: `[n, m]`.
pub(crate) fn softmax_rows(s: &mut [f32], m: usize, temperature: f64) {
    let scale = (1.0 / temperature) as f32;
    s.par_chunks_mut(m).for_each(|row| {
        let largest = max(row);
        let sum = exp_in_place(row, largest, scale);
        scale_in_place(row, (1.0 / sum) as f32);
    });
}

/// From dL/dC of `C = 1 - P`, `P = softmax(S / temperature)`, to `dL/dS = -(1/temperature) P o (G - (G o P) 1)`.
pub(crate) fn softmax_backward(gradient: &mut [f32], p: &[f32], m: usize, temperature: f64) {
    let rows = gradient.par_chunks_mut(m).zip(p.par_chunks(m));
    rows.for_each(|(gradient, p)| {
        let pairs = gradient.iter().zip(p);
        let mean: f64 = pairs.map(|(&g, &p)| f64::from(g) * f64::from(p)).sum();
        for (g, &p) in gradient.iter_mut().zip(p) {
            *g = (-(f64::from(p) * (f64::from(*g) - mean)) / temperature) as f32;
        }
    });
}

/// Turns dots `h_i . e_j = sum_v p_jv x_iv` into `(sum_v p_jv ln p_jv - dot) / kappa`: the `kl` cost without the part
/// `lse_i / kappa` that is constant along a row. Plans and their gradients do not see it; the value does.
pub(crate) fn kl_cost_rows(dots: &mut [f32], negative_entropy: &[f64], kappa: f64) {
    dots.par_chunks_mut(negative_entropy.len()).for_each(|row| {
        for (dot, h) in row.iter_mut().zip(negative_entropy) {
            *dot = ((h - f64::from(*dot)) / kappa) as f32;
        }
    });
}

/// [`kl_cost_rows`] where the dots `[n, m]` are.
pub(crate) fn kl_costs(dots: &Tensor, negative_entropy: &[f64], kappa: f64) -> Result<Tensor> {
    let entropy = Tensor::from_slice(negative_entropy, (1, negative_entropy.len()), dots.device())?;
    let above = dots.to_dtype(DType::F64)?.broadcast_sub(&entropy)?;
    Ok((above * (-1.0 / kappa))?.to_dtype(DType::F32)?)
}

/// [`softmax_rows`] where S `[.., m]` is.
pub(crate) fn softmax(s: &Tensor, temperature: f64) -> Result<Tensor> {
    let largest = s.max_keepdim(D::Minus1)?;
    let exps = (s.broadcast_sub(&largest)? / temperature)?.exp()?;
    Ok(exps.broadcast_div(&exps.sum_keepdim(D::Minus1)?)?)
}

/// [`softmax_backward`] where G and P `[.., m]` are.
pub(crate) fn softmax_gradient(gradient: &Tensor, p: &Tensor, temperature: f64) -> Result<Tensor> {
    let (gradient, p) = (gradient.to_dtype(DType::F64)?, p.to_dtype(DType::F64)?);
    let mean = (&gradient * &p)?.sum_keepdim(D::Minus1)?;
    let above = gradient.broadcast_sub(&mean)?;
    Ok(((above * p)? * (-1.0 / temperature))?.to_dtype(DType::F32)?)
}

/// `gamma (x_i - y_j)^2`, x and y the places of the positions in their sequence, from 0 to 1, added to costs.
pub(crate) struct PositionPrior {
    /// gamma.
    pub(crate) gamma: f64,
    /// x of every student position.
    pub(crate) places: Vec<f64>,
    /// y of every teacher position.
    pub(crate) teacher_places: Vec<f64>,
}

impl PositionPrior {
    /// Places `i / N` and `j / M`, or those of an alignment.
    pub(crate) fn new(gamma: f64, n: usize, m: usize, alignment: Option<&Alignment>) -> Self {
        let even = |of: usize| (0..of).map(|k| k as f64 / of as f64).collect();
        let (places, teacher_places) = match alignment {
            Some(alignment) => (
                alignment.student_places.clone(),
                alignment.teacher_places.clone(),
            ),
            None => (even(n), even(m)),
        };
        Self {
            gamma,
            places,
            teacher_places,
        }
    }

    /// The prior of all positions, `[n, m]` in f64.
    pub(crate) fn tensor(&self, device: &Device) -> Result<Tensor> {
        let x = Tensor::from_slice(&self.places, (self.places.len(), 1), device)?;
        let y = Tensor::from_slice(&self.teacher_places, (1, self.teacher_places.len()), device)?;
        Ok((x.broadcast_sub(&y)?.sqr()? * self.gamma)?)
    }

    /// The costs of the block whose first row and column are `first`, with the prior.
    pub(crate) fn added(&self, cost: &[f32], first: (usize, usize), m: usize) -> Vec<f32> {
        let mut solved = cost.to_vec();
        for (row, x) in solved.chunks_mut(m).zip(&self.places[first.0..]) {
            for (c, y) in row.iter_mut().zip(&self.teacher_places[first.1..]) {
                *c = (f64::from(*c) + self.gamma * (x - y) * (x - y)) as f32;
            }
        }
        solved
    }
}

/// Divides distances by their mean, so that epsilon means the same whatever their size; returns the mean.
pub(crate) fn scale_by_mean(distances: &mut [f32]) -> f64 {
    let sum: f64 = distances.iter().map(|&d| f64::from(d)).sum();
    let mean = sum / distances.len() as f64;
    // All distances 0: every plan costs the same, and so it should.
    if mean > 0.0 {
        scale_in_place(distances, (1.0 / mean) as f32);
    }
    mean
}

/// From dL/dC' of `C' = D / mean(D)`, over `scaled` = C', to dL/dD.
pub(crate) fn scale_by_mean_backward(gradient: &mut [f32], scaled: &[f32], mean: f64) {
    if mean <= 0.0 {
        gradient.fill(0.0);
        return;
    }
    let pairs = gradient.iter().zip(scaled);
    let along: f64 = pairs.map(|(&g, &c)| f64::from(g) * f64::from(c)).sum();
    let shift = along / gradient.len() as f64;
    for g in gradient {
        *g = ((f64::from(*g) - shift) / mean) as f32;
    }
}
