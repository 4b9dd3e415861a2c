//! Provides the teacher's rows as the losses use them: checked, with their kept distribution.

use distill_proto::Rows;
use rayon::prelude::*;

use super::config::stored_temperature;
use super::error::{LossError, Result};

/// The teacher's rows with their distributions.
pub(crate) struct Teacher<'a> {
    pub(crate) rows: &'a Rows,
    /// `[M, K]`: kept probabilities at temperature 1, renormalised to 1 (exact when K = V).
    pub(crate) kept: Vec<f32>,
    /// `[M]`: `sum_v p ln p` of the same.
    pub(crate) negative_entropy: Vec<f64>,
}

/// One row at one temperature, for KL.
#[derive(Clone, Copy)]
pub(crate) struct TeacherRow<'a> {
    pub(crate) ids: &'a [u32],
    pub(crate) logits: &'a [f32],
    /// `logsumexp(Y / tau)` over the effective vocabulary.
    pub(crate) logsumexp: f64,
    pub(crate) temperature: f64,
}

impl<'a> Teacher<'a> {
    /// Checks the rows against the student's vocabulary.
    pub(crate) fn new(rows: &'a Rows, vocab_size: usize) -> Result<Self> {
        check(rows, vocab_size)?;
        let distribution = |(row, kept): (&[f32], &mut [f32])| {
            let max = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            let exp = |y: f32| f64::from(y - max).exp();
            let sum: f64 = row.iter().map(|&y| exp(y)).sum();
            let ln_sum = sum.ln();
            let mut negative_entropy = 0.0;
            for (p, &y) in kept.iter_mut().zip(row) {
                let exact = exp(y) / sum;
                *p = exact as f32;
                negative_entropy += exact * (f64::from(y - max) - ln_sum);
            }
            negative_entropy
        };
        let mut kept = vec![0.0; rows.logits.len()];
        let negative_entropy = rows
            .logits
            .par_chunks(rows.k)
            .zip(kept.par_chunks_mut(rows.k))
            .map(distribution)
            .collect();
        Ok(Self {
            rows,
            kept,
            negative_entropy,
        })
    }

    /// Row j at a stored temperature.
    pub(crate) fn row(&self, j: usize, temperature: f64) -> Option<TeacherRow<'a>> {
        let rows = self.rows;
        let stored = stored_temperature(&rows.temperatures, temperature)?;
        let kept = j * rows.k..(j + 1) * rows.k;
        Some(TeacherRow {
            ids: rows.ids.get(kept.clone())?,
            logits: rows.logits.get(kept)?,
            logsumexp: f64::from(*rows.logsumexp.get(stored)?.get(j)?),
            temperature,
        })
    }

    /// `[M, K]`: `sqrt(p)` of the kept entries at temperature 1, with the mass they have in the whole distribution.
    pub(crate) fn roots(&self) -> Vec<f32> {
        let k = self.rows.k;
        let one = stored_temperature(&self.rows.temperatures, 1.0);
        let logsumexp = one.map(|stored| &self.rows.logsumexp[stored]);
        let root = |(entry, &y): (usize, &f32)| {
            let lse = logsumexp.map_or(f64::INFINITY, |lse| f64::from(lse[entry / k]));
            (0.5 * (f64::from(y) - lse)).exp() as f32
        };
        self.rows.logits.iter().enumerate().map(root).collect()
    }
}

/// Everything that later code indexes with or divides by.
fn check(rows: &Rows, vocab_size: usize) -> Result<()> {
    if rows.rows == 0 || rows.k == 0 {
        return Err(LossError::shape(
            "teacher rows",
            "at least one row with one kept entry",
            format!("{} rows of {}", rows.rows, rows.k),
        ));
    }
    let entries = rows.rows.saturating_mul(rows.k);
    for (what, length) in [
        ("teacher ids", rows.ids.len()),
        ("teacher logits", rows.logits.len()),
    ] {
        if length != entries {
            return Err(LossError::shape(what, entries, length));
        }
    }
    if rows.logsumexp.len() != rows.temperatures.len()
        || rows.logsumexp.iter().any(|l| l.len() != rows.rows)
    {
        return Err(LossError::shape(
            "teacher logsumexp",
            format!(
                "{} temperatures of {} rows",
                rows.temperatures.len(),
                rows.rows
            ),
            "other lengths",
        ));
    }
    if rows.vocab_size as usize != vocab_size {
        return Err(LossError::shape(
            "effective vocabulary (rows of the student's head that count)",
            format!("{} as at the teacher", rows.vocab_size),
            vocab_size,
        ));
    }
    for (j, (ids, logits)) in rows
        .ids
        .chunks(rows.k)
        .zip(rows.logits.chunks(rows.k))
        .enumerate()
    {
        if ids.windows(2).any(|pair| pair[0] >= pair[1])
            || ids.last().is_some_and(|&id| id >= rows.vocab_size)
        {
            return Err(LossError::shape(
                "teacher ids",
                format!("strictly increasing, below {}", rows.vocab_size),
                format!("others in row {j}"),
            ));
        }
        if logits.iter().any(|y| !y.is_finite()) {
            return Err(LossError::NonFinite {
                what: "teacher logits",
                position: j,
            });
        }
    }
    let bad = |lse: &Vec<f32>| lse.iter().position(|l| !l.is_finite());
    if let Some(position) = rows.logsumexp.iter().find_map(bad) {
        return Err(LossError::NonFinite {
            what: "teacher logsumexp",
            position,
        });
    }
    Ok(())
}
