//! Provides the cost matrices: softmax of similarities and its way back, the `kl` cost, and what is added when a plan is made.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::config::{AlignConfig, Cost};
use super::error::Result;
use super::simd::{exp_in_place, max, scale_in_place};
use super::targets::Alignment;

/// Replaces every row of S by `softmax(row / temperature)`.
///
/// # Shapes
/// `s`: `[n, m]`.
fn softmax_rows(s: &mut [f32], m: usize, temperature: f64) {
    let scale = (1.0 / temperature) as f32;
    s.par_chunks_mut(m).for_each(|row| {
        let largest = max(row);
        let sum = exp_in_place(row, largest, scale);
        scale_in_place(row, (1.0 / sum) as f32);
    });
}

/// From dL/dC of `C = 1 - P`, `P = softmax(S / temperature)`, to `dL/dS = -(1/temperature) P o (G - (G o P) 1)`.
fn softmax_backward(gradient: &mut [f32], p: &[f32], m: usize, temperature: f64) {
    let rows = gradient.par_chunks_mut(m).zip(p.par_chunks(m));
    rows.for_each(|(gradient, p)| {
        let pairs = gradient.iter().zip(p);
        let mean: f64 = pairs.map(|(&g, &p)| f64::from(g) * f64::from(p)).sum();
        for (g, &p) in gradient.iter_mut().zip(p) {
            *g = (-(f64::from(p) * (f64::from(*g) - mean)) / temperature) as f32;
        }
    });
}

/// Turns dots `h_i . e_j = sum_v p_jv x_iv` into `(sum_v p_jv ln p_jv - dot + lse_i) / kappa`, the `kl` cost, or without
/// `logsumexp` into the part of it that is not constant along a row: most plans and their gradients do not see that one.
pub(crate) fn kl_cost_rows(
    dots: &mut [f32],
    negative_entropy: &[f64],
    logsumexp: Option<&[f64]>,
    kappa: f64,
) {
    let rows = dots.par_chunks_mut(negative_entropy.len()).enumerate();
    rows.for_each(|(i, row)| {
        let constant = logsumexp.map_or(0.0, |logsumexp| logsumexp[i]);
        for (dot, h) in row.iter_mut().zip(negative_entropy) {
            *dot = ((h - f64::from(*dot) + constant) / kappa) as f32;
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

/// What is added to costs when a plan is made for them, and not paid: the position prior `gamma (x_i - y_j)^2`, x and y the
/// places of the positions in their sequence, from 0 to 1, less what pairs are given that the record joins, or that say the same.
pub(crate) struct Additions {
    gamma: f64,
    /// x of every student position.
    places: Vec<f64>,
    /// y of every teacher position.
    teacher_places: Vec<f64>,
    /// `(i, j)` and what is taken from their cost, by i; a pair may be there twice.
    bonuses: Vec<(usize, usize, f64)>,
}

impl Additions {
    /// Places `i / N` and `j / M`, or those of an alignment.
    pub(crate) fn new(
        config: &AlignConfig,
        n: usize,
        m: usize,
        alignment: Option<&Alignment>,
    ) -> Self {
        let even = |of: usize| (0..of).map(|k| k as f64 / of as f64).collect();
        let Some(alignment) = alignment else {
            return Self {
                gamma: config.position(false),
                places: even(n),
                teacher_places: even(m),
                bonuses: Vec::new(),
            };
        };
        let bonus = |pairs: &[(u32, u32)], bonus: f64| -> Vec<(usize, usize, f64)> {
            let counted = pairs.iter().filter(|_| bonus > 0.0);
            counted
                .map(|&(i, j)| (i as usize, j as usize, bonus))
                .collect()
        };
        let mut bonuses = bonus(&alignment.equal, config.bytes);
        bonuses.extend(bonus(&alignment.links, config.links));
        bonuses.sort_by_key(|&(i, j, _)| (i, j));
        Self {
            gamma: config.position(alignment.is_pair),
            places: alignment.student_places.clone(),
            teacher_places: alignment.teacher_places.clone(),
            bonuses,
        }
    }

    /// Whether there are any.
    pub(crate) fn is_any(&self) -> bool {
        self.gamma > 0.0 || !self.bonuses.is_empty()
    }

    /// Those of all positions, `[n, m]` in f64.
    pub(crate) fn tensor(&self, device: &Device) -> Result<Tensor> {
        let (n, m) = (self.places.len(), self.teacher_places.len());
        let x = Tensor::from_slice(&self.places, (n, 1), device)?;
        let y = Tensor::from_slice(&self.teacher_places, (1, m), device)?;
        let prior = (x.broadcast_sub(&y)?.sqr()? * self.gamma)?;
        if self.bonuses.is_empty() {
            return Ok(prior);
        }
        let mut taken = vec![0.0; n * m];
        for &(i, j, bonus) in &self.bonuses {
            taken[i * m + j] += bonus;
        }
        Ok((prior - Tensor::from_vec(taken, (n, m), device)?)?)
    }

    /// The costs of the block whose first row and column are `first`, with them.
    pub(crate) fn added(&self, cost: &[f32], first: (usize, usize), m: usize) -> Vec<f32> {
        let mut solved = cost.to_vec();
        for (row, x) in solved.chunks_mut(m).zip(&self.places[first.0..]) {
            for (c, y) in row.iter_mut().zip(&self.teacher_places[first.1..]) {
                *c = (f64::from(*c) + self.gamma * (x - y) * (x - y)) as f32;
            }
        }
        let n = cost.len() / m;
        let from = self.bonuses.partition_point(|&(i, ..)| i < first.0);
        let rows = self.bonuses[from..].iter();
        for &(i, j, bonus) in rows.take_while(|&&(i, ..)| i < first.0 + n) {
            if let Some(column) = j.checked_sub(first.1).filter(|&column| column < m) {
                let c = &mut solved[(i - first.0) * m + column];
                *c = (f64::from(*c) - bonus) as f32;
            }
        }
        solved
    }
}

/// How costs were made of a matrix over pairs of positions.
pub(crate) enum Made {
    /// They are the matrix.
    AsIs,
    /// 1 less its rows' softmax P, which this is.
    Softmax(Vec<f32>),
    /// Divided by its mean, which this is.
    OverMean(f64),
}

/// The costs of one problem, from the part `[n, m]` of a matrix that is its own.
pub(crate) fn costs(
    mut matrix: Vec<f32>,
    m: usize,
    kind: Cost,
    temperature: f64,
) -> (Vec<f32>, Made) {
    match kind {
        Cost::Kl | Cost::Hidden => (matrix, Made::AsIs),
        Cost::SoftmaxSimilarity => {
            softmax_rows(&mut matrix, m, temperature);
            (
                matrix.iter().map(|p| 1.0 - p).collect(),
                Made::Softmax(matrix),
            )
        }
        Cost::SquaredEuclidean => {
            let mean = scale_by_mean(&mut matrix);
            (matrix, Made::OverMean(mean))
        }
    }
}

impl Made {
    /// From the gradient in the costs to that in the matrix.
    pub(crate) fn pull_back(
        &self,
        gradient: &mut [f32],
        costs: &[f32],
        m: usize,
        temperature: f64,
    ) {
        match self {
            Self::AsIs => {}
            Self::Softmax(p) => softmax_backward(gradient, p, m, temperature),
            Self::OverMean(mean) => scale_by_mean_backward(gradient, costs, *mean),
        }
    }
}

/// Divides distances by their mean, so that epsilon means the same whatever their size; returns the mean.
fn scale_by_mean(distances: &mut [f32]) -> f64 {
    let sum: f64 = distances.iter().map(|&d| f64::from(d)).sum();
    let mean = sum / distances.len() as f64;
    // All distances 0: every plan costs the same, and so it should.
    if mean > 0.0 {
        scale_in_place(distances, (1.0 / mean) as f32);
    }
    mean
}

/// From dL/dC' of `C' = D / mean(D)`, over `scaled` = C', to dL/dD.
fn scale_by_mean_backward(gradient: &mut [f32], scaled: &[f32], mean: f64) {
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
