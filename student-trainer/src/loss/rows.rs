/*! Provides one row of the fused head: from a row of student logits to its values and its gradient.

```text
 z [V] ──> kept and label entries set aside, the rest to exp(z - max of the rest) and its sum
       ──> logsumexp of the tail, of all ──> CE, divergence from the teacher
       ──> tail entries times one number, kept entries one by one: dL/dz
```

[`RowLoss`] is everything between the sums and the numbers that the row is multiplied with, and [`row_pass`] the rest, on the CPU and
in place; on a card kernels do both ([`card_rows`](super::card_rows)).
*/

use super::divergence::{DivergenceForm, RowDivergence, Split};
use super::simd::{combine_exps, exp_in_place, exp_sums, max, scale_in_place};
use super::teacher::TeacherRow;

/// What one row contributes, with the weights of the whole loss already in them.
pub(crate) struct RowTerms<'a> {
    /// The target.
    pub(crate) label: u32,
    /// Weight of CE over the number of rows.
    pub(crate) ce: f64,
    /// The teacher's row, with the weight of the divergence over the number of rows that have one.
    pub(crate) kl: Option<(TeacherRow<'a>, f64)>,
    /// Which divergence.
    pub(crate) divergence: DivergenceForm,
    /// Weight of d logsumexp(z) / dz = q, from the transport costs.
    pub(crate) softmax: f64,
}

impl RowTerms<'_> {
    /// The kept ids; none without a teacher's row.
    pub(crate) fn ids(&self) -> &[u32] {
        self.kl.as_ref().map_or(&[], |(row, _)| row.ids)
    }

    /// tau; 1 without a teacher's row.
    pub(crate) fn temperature(&self) -> f64 {
        self.kl.as_ref().map_or(1.0, |(row, _)| row.temperature)
    }
}

/// Values of one row, without weights.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowValues {
    pub(crate) logsumexp: f64,
    pub(crate) ce: f64,
    /// tau^2 KL, or the divergence in its place.
    pub(crate) kl: f64,
}

/// A row of student logits as the loss sees it: some entries by themselves, the others, its tail, in sums.
pub(crate) struct RowParts {
    /// The label's logit, which may be one of the kept.
    pub(crate) label: f32,
    /// Logits that are not in the sums.
    pub(crate) kept: Vec<f32>,
    /// The largest logit of the tail; any finite number where the tail is empty.
    pub(crate) tail_max: f32,
    /// `sum exp(z - tail_max)` over the tail.
    pub(crate) sum: f64,
    /// `sum exp((z - tail_max) / tau)`.
    pub(crate) sum_tempered: f64,
}

/// dL/dz of one row: `own exp(z - tail_max) + tail exp((z - tail_max) / tau)` for the tail.
pub(crate) struct RowGradient {
    pub(crate) own: f64,
    pub(crate) tail: f64,
    /// Of the kept logits, instead.
    pub(crate) kept: Vec<f32>,
    /// To be added at the label, wherever it is.
    pub(crate) label: f32,
}

/// The loss of one row.
pub(crate) struct RowLoss<'r> {
    terms: &'r RowTerms<'r>,
    parts: &'r RowParts,
    plain: Split,
    tempered: Split,
    kl: Option<(RowDivergence, f64)>,
}

impl<'r> RowLoss<'r> {
    pub(crate) fn new(terms: &'r RowTerms, parts: &'r RowParts) -> Self {
        let RowParts { kept, tail_max, .. } = parts;
        let tempered = Split::new(*tail_max, parts.sum_tempered, kept, terms.temperature());
        Self {
            kl: terms.kl.as_ref().map(|(row, weight)| {
                let kl = RowDivergence::new(terms.divergence, row, kept, &tempered);
                (kl, *weight)
            }),
            plain: Split::new(*tail_max, parts.sum, kept, 1.0),
            tempered,
            terms,
            parts,
        }
    }

    /// NaN or infinite when the logits are; the caller checks them.
    pub(crate) fn values(&self) -> RowValues {
        RowValues {
            logsumexp: self.plain.all,
            ce: self.plain.all - f64::from(self.parts.label),
            kl: self.kl.as_ref().map_or(0.0, |(kl, _)| kl.value),
        }
    }

    pub(crate) fn gradient(&self) -> RowGradient {
        let Self {
            terms,
            parts,
            plain,
            tempered,
            ..
        } = self;
        let tail_max = f64::from(parts.tail_max);
        let softmax = terms.ce + terms.softmax;
        let tail = self.kl.as_ref().map_or(0.0, |(kl, weight)| {
            let top = tail_max / terms.temperature();
            let within = match kl.tail_within {
                0.0 => 0.0,
                within => within * (top - tempered.tail).exp(),
            };
            weight * (kl.tail_all * (top - tempered.all).exp() + within)
        });
        let kept = |(k, &logit): (usize, &f32)| {
            let kl = self
                .kl
                .as_ref()
                .map_or(0.0, |(kl, weight)| weight * kl.kept[k]);
            (softmax * (f64::from(logit) - plain.all).exp() + kl) as f32
        };
        RowGradient {
            own: softmax * (tail_max - plain.all).exp(),
            tail,
            kept: parts.kept.iter().enumerate().map(kept).collect(),
            label: -terms.ce as f32,
        }
    }
}

/// Writes dL/dz over z when `gradient` is asked for (z is scratch in any case) and returns the row's values.
pub(crate) fn row_pass(z: &mut [f32], terms: &RowTerms, gradient: bool) -> RowValues {
    let ids = terms.ids();
    let label = z[terms.label as usize];
    let kept: Vec<f32> = ids.iter().map(|&id| z[id as usize]).collect();
    for &id in ids {
        z[id as usize] = f32::NEG_INFINITY;
    }
    let temperature = terms.temperature();
    let inverse = (1.0 / temperature) as f32;
    let mut tail_max = max(z);
    if ids.len() == z.len() || tail_max == f32::NEG_INFINITY {
        // Nothing but kept entries: any finite number leaves exp(-inf) = 0.
        tail_max = 0.0;
    }
    // At tau = 1 one exponential serves CE, KL and transport, and stays in z.
    let (sum, sum_tempered) = if temperature == 1.0 {
        let sum = exp_in_place(z, tail_max, 1.0);
        (sum, sum)
    } else {
        exp_sums(z, tail_max, inverse)
    };
    let parts = RowParts {
        label,
        kept,
        tail_max,
        sum,
        sum_tempered,
    };
    let loss = RowLoss::new(terms, &parts);
    if gradient {
        let gradient = loss.gradient();
        if temperature == 1.0 {
            scale_in_place(z, (gradient.own + gradient.tail) as f32);
        } else {
            let factors = [gradient.own as f32, gradient.tail as f32];
            combine_exps(z, tail_max, inverse, factors);
        }
        for (&id, &kept) in ids.iter().zip(&gradient.kept) {
            z[id as usize] = kept;
        }
        z[terms.label as usize] += gradient.label;
    }
    loss.values()
}
