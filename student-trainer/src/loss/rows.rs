/*! Provides the row of the fused head on the CPU: from one row of student logits, in place, to its gradient.

```text
 z [V] ──> kept and label entries set aside, the rest to exp(z - max of the rest) and its sum
       ──> logsumexp of the tail, of all ──> CE, KL
       ──> tail entries times one number, kept entries one by one: z now holds dL/dz
```

KL at temperature tau over the kept ids and one tail bucket, times tau^2 (Hinton et al., 2015). With P the teacher's
whole mass, p_t its tail, q the student at tau and q_u|tail = q_u / q_t:
`d(tau^2 KL)/dz_u = tau (P q_u - p_u)` for kept u, `tau (P q_u - p_t q_u|tail)` for the others.
*/

use super::simd::{combine_exps, exp_in_place, exp_sums, max, scale_in_place};
use super::teacher::TeacherRow;

/// What one row contributes, with the weights of the whole loss already in them.
#[derive(Clone, Copy)]
pub(crate) struct RowTerms<'a> {
    /// The target.
    pub(crate) label: u32,
    /// Weight of CE over the number of rows.
    pub(crate) ce: f64,
    /// The teacher's row, with the weight of KL over the number of rows.
    pub(crate) kl: Option<(TeacherRow<'a>, f64)>,
    /// Weight of d logsumexp(z) / dz = q, from the transport costs.
    pub(crate) softmax: f64,
}

/// Values of one row, without weights.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowValues {
    pub(crate) logsumexp: f64,
    pub(crate) ce: f64,
    /// tau^2 KL.
    pub(crate) kl: f64,
}

/// The student's row at one temperature, split as the teacher's is.
struct Split {
    /// Over the ids that are not kept; -inf when all are.
    tail: f64,
    all: f64,
}

impl Split {
    /// `max` and `sum` are those of the tail, `kept` the kept logits; everything over `temperature`.
    fn new(max: f32, sum: f64, kept: &[f32], temperature: f64) -> Self {
        let tail = if sum > 0.0 {
            f64::from(max) / temperature + sum.ln()
        } else {
            f64::NEG_INFINITY
        };
        let of = |z: &f32| f64::from(*z) / temperature;
        let top = kept.iter().map(of).fold(tail, f64::max);
        // A NaN among the kept must come out: `f64::max` passes over it, the sum does not.
        let kept_sum: f64 = kept.iter().map(|z| (of(z) - top).exp()).sum();
        Self {
            tail,
            all: top + (kept_sum + (tail - top).exp()).ln(),
        }
    }
}

/// Writes dL/dz over z when `gradient` is asked for (z is scratch in any case) and returns the row's values.
///
/// Values are NaN or infinite when the logits are; the caller checks them.
pub(crate) fn row_pass(z: &mut [f32], terms: &RowTerms, gradient: bool) -> RowValues {
    let ids: &[u32] = terms.kl.map_or(&[], |(row, _)| row.ids);
    let label_logit = f64::from(z[terms.label as usize]);
    let kept: Vec<f32> = ids.iter().map(|&id| z[id as usize]).collect();
    for &id in ids {
        z[id as usize] = f32::NEG_INFINITY;
    }
    let temperature = terms.kl.map_or(1.0, |(row, _)| row.temperature);
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
    let kl = terms
        .kl
        .map(|(row, weight)| Kl::new(row, weight, &kept, &tempered));
    if gradient {
        let softmax = terms.ce + terms.softmax;
        let own = softmax * (f64::from(tail_max) - plain.all).exp();
        let tail = kl.as_ref().map_or(0.0, |kl| kl.tail_factor(tail_max));
        if temperature == 1.0 {
            scale_in_place(z, (own + tail) as f32);
        } else {
            combine_exps(z, tail_max, inverse, [own as f32, tail as f32]);
        }
        for (k, (&id, &logit)) in ids.iter().zip(&kept).enumerate() {
            let kl = kl.as_ref().map_or(0.0, |kl| kl.kept_gradient(k, logit));
            z[id as usize] = (softmax * (f64::from(logit) - plain.all).exp() + kl) as f32;
        }
        z[terms.label as usize] -= terms.ce as f32;
    }
    RowValues {
        logsumexp: plain.all,
        ce: plain.all - label_logit,
        kl: kl.map_or(0.0, |kl| kl.value),
    }
}

/// KL of one row at its temperature.
struct Kl {
    /// tau^2 KL.
    value: f64,
    /// Weight times tau.
    scale: f64,
    temperature: f64,
    /// Teacher: kept, tail, sum of both.
    p: Vec<f64>,
    p_tail: f64,
    mass: f64,
    student: Split,
}

impl Kl {
    fn new(row: TeacherRow, weight: f64, kept: &[f32], student: &Split) -> Self {
        let tau = row.temperature;
        let log_p = |y: f32| f64::from(y) / tau - row.logsumexp;
        let p: Vec<f64> = row.logits.iter().map(|&y| log_p(y).exp()).collect();
        let kept_mass: f64 = p.iter().sum();
        // Rounding may leave a kept mass of 1 + 1e-7. With every id kept there is no tail to hold the rest.
        let p_tail = if student.tail == f64::NEG_INFINITY {
            0.0
        } else {
            (1.0 - kept_mass).max(0.0)
        };
        let mut value: f64 = row
            .logits
            .iter()
            .zip(kept)
            .zip(&p)
            .map(|((&y, &z), p)| p * (log_p(y) - (f64::from(z) / tau - student.all)))
            .sum();
        if p_tail > 0.0 {
            value += p_tail * (p_tail.ln() - (student.tail - student.all));
        }
        Self {
            value: tau * tau * value,
            scale: weight * tau,
            temperature: tau,
            mass: kept_mass + p_tail,
            p,
            p_tail,
            student: Split { ..*student },
        }
    }

    /// What multiplies `exp((z_u - tail_max) / tau)` for the ids that are not kept.
    fn tail_factor(&self, tail_max: f32) -> f64 {
        let top = f64::from(tail_max) / self.temperature;
        let all = self.mass * (top - self.student.all).exp();
        let tail = if self.p_tail > 0.0 {
            self.p_tail * (top - self.student.tail).exp()
        } else {
            0.0
        };
        self.scale * (all - tail)
    }

    fn kept_gradient(&self, k: usize, logit: f32) -> f64 {
        let q = (f64::from(logit) / self.temperature - self.student.all).exp();
        self.scale * (self.mass * q - self.p[k])
    }
}
