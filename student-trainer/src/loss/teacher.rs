/*! Provides the teacher's rows as the losses use them: checked, with the weights that stand for its distribution.

Every sum over the teacher's distribution, `sum_v p_v f(v)`, becomes a sum over the entries of a row with weights:

```text
 top_k          p_v of the kept ids; what is missing to 1 is one bucket (KL), or the weights are scaled to 1 (transport)
 sampled        draws of v / draws of the row: unbiased, no bucket
 head+sampled   p_v of the head; (1 - mass of the head) draws of v / draws of the row for the rest: unbiased, no bucket
```
*/

use std::ops::Range;

use rayon::prelude::*;

use super::config::{Marginals, stored_temperature};
use super::error::{LossError, Result};
use super::targets::Targets;

/// The teacher's rows with their distributions.
pub(crate) struct Teacher<'a> {
    pub(crate) targets: &'a Targets,
    /// One for every entry: weights at temperature 1, summing to 1 in each row (exact when K = V).
    pub(crate) weights: Vec<f32>,
    /// `[M]`: `sum_v p ln p` by the same weights.
    pub(crate) negative_entropy: Vec<f64>,
}

/// One row at one temperature, for KL.
#[derive(Clone)]
pub(crate) struct TeacherRow<'a> {
    pub(crate) ids: &'a [u32],
    /// Weights of the entries, not scaled to 1.
    pub(crate) p: Vec<f64>,
    /// ln of the teacher's probability of each entry.
    pub(crate) log_p: Vec<f64>,
    /// Whether what is missing to 1 is the mass of one bucket that holds all other ids.
    pub(crate) bucket: bool,
    pub(crate) temperature: f64,
}

impl<'a> Teacher<'a> {
    /// Checks the rows against the student's vocabulary.
    pub(crate) fn new(targets: &'a Targets, vocab_size: usize) -> Result<Self> {
        check(targets, vocab_size)?;
        let row = |j: usize| {
            if targets.estimator.is_drawn() {
                drawn_distribution(targets, j)
            } else {
                kept_distribution(&targets.logits[targets.entries(j)])
            }
        };
        let rows: Vec<(Vec<f32>, f64)> = (0..targets.rows()).into_par_iter().map(row).collect();
        let mut teacher = Self {
            targets,
            weights: Vec::with_capacity(targets.ids.len()),
            negative_entropy: Vec::with_capacity(rows.len()),
        };
        for (weights, negative_entropy) in rows {
            teacher.weights.extend(weights);
            teacher.negative_entropy.push(negative_entropy);
        }
        Ok(teacher)
    }

    /// M.
    pub(crate) fn rows(&self) -> usize {
        self.targets.rows()
    }

    /// Row j at a stored temperature.
    pub(crate) fn row(&self, j: usize, temperature: f64) -> Option<TeacherRow<'a>> {
        let targets = self.targets;
        let log_p = log_probabilities(targets, j, temperature)?;
        let entries = targets.entries(j);
        let p = if targets.estimator.is_drawn() {
            drawn_weights(&log_p, &targets.counts[entries.clone()], targets.draws[j])
        } else {
            log_p.iter().map(|l| l.exp()).collect()
        };
        Some(TeacherRow {
            ids: &targets.ids[entries],
            p,
            log_p,
            bucket: !targets.estimator.is_drawn(),
            temperature,
        })
    }

    /// Masses of the rows, of sum 1; `None` where all have the same.
    pub(crate) fn masses(&self, marginals: Marginals) -> Option<Vec<f64>> {
        let of = |mass: fn(f64) -> f64| -> Vec<f64> {
            let entropy = self.negative_entropy.iter().map(|h| (-h).max(0.0));
            entropy.map(mass).collect()
        };
        let masses = match marginals {
            Marginals::Uniform => return None,
            Marginals::Entropy => of(|entropy| entropy),
            Marginals::Confidence => of(|entropy| (-entropy).exp()),
        };
        let sum: f64 = masses.iter().sum();
        // A teacher that is sure everywhere prefers no position.
        (sum > 0.0).then(|| masses.iter().map(|mass| mass / sum).collect())
    }

    /// What stands for `sqrt(p)` in `sum_v sqrt(p_v q_v)`, one for every entry: with the mass they have in the whole
    /// distribution, `p / sqrt(p)` where an entry is kept and `weight / sqrt(p)` where it is drawn.
    pub(crate) fn roots(&self) -> Vec<f32> {
        let row = |j: usize| {
            let row = self.row(j, 1.0);
            let pairs = row.map(|row| row.p.into_iter().zip(row.log_p));
            let root = |(p, log_p): (f64, f64)| (p * (-0.5 * log_p).exp()) as f32;
            pairs.into_iter().flatten().map(root).collect::<Vec<f32>>()
        };
        (0..self.rows()).flat_map(row).collect()
    }
}

impl Targets {
    /// Where the entries of row j are.
    pub(crate) fn entries(&self, j: usize) -> Range<usize> {
        self.starts[j]..self.starts[j + 1]
    }
}

/// Softmax of kept logits, and its negative entropy.
fn kept_distribution(logits: &[f32]) -> (Vec<f32>, f64) {
    let max = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let exp = |y: f32| f64::from(y - max).exp();
    let sum: f64 = logits.iter().map(|&y| exp(y)).sum();
    let ln_sum = sum.ln();
    let p: Vec<f64> = logits.iter().map(|&y| exp(y) / sum).collect();
    let terms = p.iter().zip(logits);
    let negative_entropy = terms.map(|(p, &y)| p * (f64::from(y - max) - ln_sum)).sum();
    (p.into_iter().map(|p| p as f32).collect(), negative_entropy)
}

/// Weights of a drawn row scaled to 1 (they sum to less where ids found no counterpart), and its negative entropy.
fn drawn_distribution(targets: &Targets, j: usize) -> (Vec<f32>, f64) {
    let counts = &targets.counts[targets.entries(j)];
    let log_p = log_probabilities(targets, j, 1.0).unwrap_or_default();
    let weights = drawn_weights(&log_p, counts, targets.draws[j]);
    let sum: f64 = weights.iter().sum();
    let terms = weights.iter().zip(&log_p);
    let negative_entropy = terms.map(|(w, l)| w / sum * l).sum();
    let scaled = weights.iter().map(|w| (w / sum) as f32).collect();
    (scaled, negative_entropy)
}

/// `y / tau - logsumexp(Y / tau)` of the entries of row j, where that temperature is stored.
fn log_probabilities(targets: &Targets, j: usize, temperature: f64) -> Option<Vec<f64>> {
    let stored = stored_temperature(&targets.temperatures, temperature)?;
    let logsumexp = f64::from(*targets.logsumexp.get(stored)?.get(j)?);
    let logits = &targets.logits[targets.entries(j)];
    let log_p = |&y: &f32| f64::from(y) / temperature - logsumexp;
    Some(logits.iter().map(log_p).collect())
}

/// Unbiased weights of a drawn row: of entries with count 0, the known head, the probability itself.
fn drawn_weights(log_p: &[f64], counts: &[u32], draws: u32) -> Vec<f64> {
    let draws = f64::from(draws);
    let pairs = || log_p.iter().zip(counts);
    let head: f64 = pairs()
        .filter(|(_, c)| **c == 0)
        .map(|(l, _)| l.exp())
        .sum();
    let rest = (1.0 - head).max(0.0);
    let weight = |(l, &count): (&f64, &u32)| match count {
        0 => l.exp(),
        _ => rest * f64::from(count) / draws,
    };
    pairs().map(weight).collect()
}

/// Everything that later code indexes with or divides by.
fn check(targets: &Targets, vocab_size: usize) -> Result<()> {
    let rows = targets.rows();
    let increasing = targets.starts.windows(2).all(|pair| pair[0] < pair[1]);
    if rows == 0 || !increasing || targets.starts[0] != 0 {
        return Err(LossError::shape(
            "teacher rows",
            "at least one row, each with one kept entry",
            format!("{rows} rows, {} entries", targets.ids.len()),
        ));
    }
    let entries = targets.starts[rows];
    let counts = if targets.estimator.is_drawn() {
        entries
    } else {
        0
    };
    for (what, expected, length) in [
        ("teacher ids", entries, targets.ids.len()),
        ("teacher logits", entries, targets.logits.len()),
        ("teacher counts", counts, targets.counts.len()),
        (
            "teacher draws",
            if counts > 0 { rows } else { 0 },
            targets.draws.len(),
        ),
        (
            "teacher logsumexp",
            targets.temperatures.len(),
            targets.logsumexp.len(),
        ),
    ] {
        if length != expected {
            return Err(LossError::shape(what, expected, length));
        }
    }
    if let Some(column) = targets.logsumexp.iter().find(|l| l.len() != rows) {
        return Err(LossError::shape("teacher logsumexp", rows, column.len()));
    }
    if targets.vocab_size as usize != vocab_size {
        return Err(LossError::shape(
            "effective vocabulary (rows of the student's head that count)",
            format!("{} as at the teacher", targets.vocab_size),
            vocab_size,
        ));
    }
    (0..rows).try_for_each(|j| check_row(targets, j))?;
    let bad = |lse: &Vec<f32>| lse.iter().position(|l| !l.is_finite());
    match targets.logsumexp.iter().find_map(bad) {
        Some(position) => Err(LossError::NonFinite {
            what: "teacher logsumexp",
            position,
        }),
        None => Ok(()),
    }
}

fn check_row(targets: &Targets, j: usize) -> Result<()> {
    let entries = targets.entries(j);
    let ids = &targets.ids[entries.clone()];
    if ids.windows(2).any(|pair| pair[0] >= pair[1])
        || ids.last().is_some_and(|&id| id >= targets.vocab_size)
    {
        return Err(LossError::shape(
            "teacher ids",
            format!("strictly increasing, below {}", targets.vocab_size),
            format!("others in row {j}"),
        ));
    }
    if targets.logits[entries.clone()]
        .iter()
        .any(|y| !y.is_finite())
    {
        return Err(LossError::NonFinite {
            what: "teacher logits",
            position: j,
        });
    }
    let undrawn = |count: &u32| *count == 0;
    let drawn_alone = targets.estimator.is_drawn() && !targets.estimator.has_head();
    if drawn_alone && targets.counts[entries].iter().any(undrawn) {
        return Err(LossError::shape(
            "teacher counts",
            "at least one draw of every id",
            format!("none of an id in row {j}"),
        ));
    }
    Ok(())
}
