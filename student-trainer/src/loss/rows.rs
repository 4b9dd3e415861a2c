/*! Provides the row of the fused head on the CPU: from one row of student logits, in place, to its gradient.

```text
 z [V] ──> kept and label entries set aside, the rest to exp(z - max of the rest) and its sum
       ──> logsumexp of the tail, of all ──> CE, divergence from the teacher
       ──> tail entries times one number, kept entries one by one: z now holds dL/dz
```
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

/// Values of one row, without weights.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowValues {
    pub(crate) logsumexp: f64,
    pub(crate) ce: f64,
    /// tau^2 KL, or the divergence in its place.
    pub(crate) kl: f64,
}

/// Writes dL/dz over z when `gradient` is asked for (z is scratch in any case) and returns the row's values.
///
/// Values are NaN or infinite when the logits are; the caller checks them.
pub(crate) fn row_pass(z: &mut [f32], terms: &RowTerms, gradient: bool) -> RowValues {
    let teacher = terms.kl.as_ref();
    let ids: &[u32] = teacher.map_or(&[], |(row, _)| row.ids);
    let label_logit = f64::from(z[terms.label as usize]);
    let kept: Vec<f32> = ids.iter().map(|&id| z[id as usize]).collect();
    for &id in ids {
        z[id as usize] = f32::NEG_INFINITY;
    }
    let temperature = teacher.map_or(1.0, |(row, _)| row.temperature);
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
    let kl = teacher.map(|(row, weight)| {
        let kl = RowDivergence::new(terms.divergence, row, &kept, &tempered);
        (kl, *weight)
    });
    if gradient {
        let softmax = terms.ce + terms.softmax;
        let own = softmax * (f64::from(tail_max) - plain.all).exp();
        // What multiplies exp((z_u - tail_max) / tau) for the ids that are not kept.
        let tail = kl.as_ref().map_or(0.0, |(kl, weight)| {
            let top = f64::from(tail_max) / temperature;
            let within = match kl.tail_within {
                0.0 => 0.0,
                within => within * (top - tempered.tail).exp(),
            };
            weight * (kl.tail_all * (top - tempered.all).exp() + within)
        });
        if temperature == 1.0 {
            scale_in_place(z, (own + tail) as f32);
        } else {
            combine_exps(z, tail_max, inverse, [own as f32, tail as f32]);
        }
        for (k, (&id, &logit)) in ids.iter().zip(&kept).enumerate() {
            let kl = kl.as_ref().map_or(0.0, |(kl, weight)| weight * kl.kept[k]);
            z[id as usize] = (softmax * (f64::from(logit) - plain.all).exp() + kl) as f32;
        }
        z[terms.label as usize] -= terms.ce as f32;
    }
    RowValues {
        logsumexp: plain.all,
        ce: plain.all - label_logit,
        kl: kl.map_or(0.0, |(kl, _)| kl.value),
    }
}
