/*! Provides one row of the fused head: from a row of student logits to its values and its gradient.

```text
 z [V] ──> kept and label entries set aside, the rest to exp(z - max of the rest) and its sum
       ──> logsumexp of the tail, of all ──> CE, divergence from the teacher
       ──> tail entries times one number, kept entries one by one: dL/dz
```

[`row_pass`] is the CPU's, in place; kernels do the same on a card ([`card_rows`](super::card_rows)).
*/

use super::divergence::{Divergences, FORMS, RowDivergences, Split};
use super::simd::{combine_exps, exp_in_place, exp_sums, max, scale_in_place};
use super::teacher::TeacherRow;

/// What one row contributes, with the weights of the whole loss already in them.
pub(crate) struct RowTerms<'a> {
    /// The target.
    pub(crate) label: u32,
    /// Weight of CE over the number of rows.
    pub(crate) ce: f64,
    /// The teacher's row, where one is beside it and a divergence is asked for.
    pub(crate) teacher: Option<TeacherRow<'a>>,
    /// The divergences from it, their weights over the number of rows that have one.
    pub(crate) divergences: Divergences,
    /// Weight of d logsumexp(z) / dz = q, from the transport costs.
    pub(crate) softmax: f64,
}

impl RowTerms<'_> {
    /// The kept ids; none without a teacher's row.
    pub(crate) fn ids(&self) -> &[u32] {
        self.teacher.as_ref().map_or(&[], |row| row.ids)
    }

    /// tau; 1 without a teacher's row.
    pub(crate) fn temperature(&self) -> f64 {
        self.teacher.as_ref().map_or(1.0, |row| row.temperature)
    }
}

/// Values of one row, without weights.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowValues {
    pub(crate) logsumexp: f64,
    pub(crate) ce: f64,
    /// tau^2 times each divergence; 0 where it is not asked for.
    pub(crate) divergences: [f64; FORMS],
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
    let plain = Split::new(tail_max, sum, &kept, 1.0);
    let tempered = Split::new(tail_max, sum_tempered, &kept, temperature);
    let teacher = terms.teacher.as_ref();
    let divergences =
        teacher.map(|row| RowDivergences::new(&terms.divergences, row, &kept, &tempered));
    if gradient {
        let softmax = terms.ce + terms.softmax;
        // Of the tail: `own exp(z - tail_max) + pulled exp((z - tail_max) / tau)`.
        let own = softmax * (f64::from(tail_max) - plain.all).exp();
        let through = divergences.as_ref().map(|all| &all.gradient);
        let pulled = through.map_or(0.0, |through| {
            let top = f64::from(tail_max) / temperature;
            // The tail may be empty, and its logsumexp -inf.
            let within = if through.tail_within == 0.0 {
                0.0
            } else {
                through.tail_within * (top - tempered.tail).exp()
            };
            through.tail_all * (top - tempered.all).exp() + within
        });
        if temperature == 1.0 {
            scale_in_place(z, (own + pulled) as f32);
        } else {
            combine_exps(z, tail_max, inverse, [own as f32, pulled as f32]);
        }
        for (k, (&id, &logit)) in ids.iter().zip(&kept).enumerate() {
            let pulled = through.map_or(0.0, |through| through.kept[k]);
            z[id as usize] = (softmax * (f64::from(logit) - plain.all).exp() + pulled) as f32;
        }
        z[terms.label as usize] -= terms.ce as f32;
    }
    RowValues {
        logsumexp: plain.all,
        ce: plain.all - f64::from(label),
        divergences: divergences.map_or([0.0; FORMS], |all| all.values),
    }
}
