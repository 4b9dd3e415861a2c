/*! Provides the divergences between teacher p and student q of one row, over the kept ids and one bucket for all others.

```text
 forward   KL(p || q)                                            Hinton et al., 2015
 reverse   KL(q || p)                                            Gu et al., "MiniLLM", 2024
 jsd       beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q      Agarwal et al., "GKD", 2024
```

With q = softmax(z / tau), `d/dz_u = q_u (g_u - sum_v q_v g_v) / tau` for `g_u = dD/dq_u`, where every id inside the
bucket has the bucket's g. `forward` also takes weights without a bucket (drawn entries): `(P q_u - p_u) / tau`, P their sum.
*/

use super::teacher::TeacherRow;

/// How many there are.
pub(crate) const FORMS: usize = 3;

/// A divergence with its parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
enum DivergenceForm {
    Forward,
    Reverse,
    /// With beta, the teacher's share of the mixture.
    Jsd(f64),
}

/// The divergences of a loss, in the order forward, reverse, jsd, which is also that of `kernels/src/cuda/head.cu`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Divergences {
    /// Weight of each; `None` where it is not asked for.
    pub(crate) weights: [Option<f64>; FORMS],
    /// Of jsd, the teacher's share of the mixture.
    pub(crate) beta: f64,
}

impl Divergences {
    /// Of a row without a teacher.
    pub(crate) const NONE: Self = Self {
        weights: [None; FORMS],
        beta: 0.5,
    };

    fn forms(&self) -> [DivergenceForm; FORMS] {
        let jsd = DivergenceForm::Jsd(self.beta);
        [DivergenceForm::Forward, DivergenceForm::Reverse, jsd]
    }

    /// Over so many rows.
    pub(crate) fn over(self, count: usize) -> Self {
        let share = |weight: Option<f64>| weight.map(|weight| weight / count.max(1) as f64);
        Self {
            weights: self.weights.map(share),
            ..self
        }
    }
}

/// Mass that the teacher's bucket has at least, under `reverse` and `jsd`: what f32 leaves of one minus a sum.
const BUCKET_MIN: f64 = 1e-7;

/// The student's row at one temperature, split as the teacher's is; everything over the temperature.
#[derive(Clone, Copy)]
pub(crate) struct Split {
    /// logsumexp over the ids that are not kept; -inf when all are.
    pub(crate) tail: f64,
    /// logsumexp over all.
    pub(crate) all: f64,
}

impl Split {
    /// `max` and `sum` are those of the tail's exponentials, `kept` the kept logits.
    pub(crate) fn new(max: f32, sum: f64, kept: &[f32], temperature: f64) -> Self {
        // Not `sum > 0`, which would take NaN for an empty tail.
        let tail = if sum == 0.0 {
            f64::NEG_INFINITY
        } else {
            f64::from(max) / temperature + sum.ln()
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

/// The divergences of a row, times tau^2: the value of each, and their weighted gradient in z.
pub(crate) struct RowDivergences {
    /// 0 where it is not asked for.
    pub(crate) values: [f64; FORMS],
    pub(crate) gradient: RowGradient,
}

/// A gradient in the logits of a row.
pub(crate) struct RowGradient {
    /// Of the kept logits.
    pub(crate) kept: Vec<f64>,
    /// Of a logit that is not kept: `tail_all q_u + tail_within q_u / q_tail`.
    pub(crate) tail_all: f64,
    pub(crate) tail_within: f64,
}

impl RowDivergences {
    pub(crate) fn new(
        divergences: &Divergences,
        row: &TeacherRow,
        kept: &[f32],
        student: &Split,
    ) -> Self {
        let tau = row.temperature;
        let of = |z: &f32| f64::from(*z) / tau - student.all;
        let log_q: Vec<f64> = kept.iter().map(of).collect();
        let mut sum = Self {
            values: [0.0; FORMS],
            gradient: RowGradient {
                kept: vec![0.0; kept.len()],
                tail_all: 0.0,
                tail_within: 0.0,
            },
        };
        let forms = divergences.forms().into_iter().zip(divergences.weights);
        for ((form, weight), to) in forms.zip(&mut sum.values) {
            if let Some(weight) = weight {
                let (value, gradient) = divergence(form, row, &log_q, student);
                *to = tau * tau * value;
                sum.gradient.add(&gradient, weight * tau);
            }
        }
        sum
    }
}

impl RowGradient {
    fn add(&mut self, other: &Self, weight: f64) {
        self.tail_all += weight * other.tail_all;
        self.tail_within += weight * other.tail_within;
        for (sum, g) in self.kept.iter_mut().zip(&other.kept) {
            *sum += weight * g;
        }
    }
}

/// A divergence of a row with its gradient in z / tau.
fn divergence(
    form: DivergenceForm,
    row: &TeacherRow,
    log_q: &[f64],
    student: &Split,
) -> (f64, RowGradient) {
    match form {
        DivergenceForm::Forward => forward(row, log_q, student),
        DivergenceForm::Reverse => by_terms(row, log_q, student, |_, q, log_p, log_q| {
            (q * (log_q - log_p), log_q - log_p)
        }),
        DivergenceForm::Jsd(beta) => by_terms(row, log_q, student, |p, q, log_p, log_q| {
            let log_m = (beta * p + (1.0 - beta) * q).ln();
            // 0 ln 0 = 0 on either side.
            let part = |x: f64, log_x: f64| if x > 0.0 { x * (log_x - log_m) } else { 0.0 };
            let value = beta * part(p, log_p) + (1.0 - beta) * part(q, log_q);
            (value, (1.0 - beta) * (log_q - log_m))
        }),
    }
}

fn forward(row: &TeacherRow, log_q: &[f64], student: &Split) -> (f64, RowGradient) {
    let kept_mass: f64 = row.p.iter().sum();
    let entries = row.p.iter().zip(&row.log_p).zip(log_q);
    let mut value: f64 = entries.map(|((p, log_p), log_q)| p * (log_p - log_q)).sum();
    // Rounding may leave a kept mass of 1 + 1e-7. With every id kept there is no bucket to hold the rest.
    let bucket = if row.bucket && student.tail > f64::NEG_INFINITY {
        (1.0 - kept_mass).max(0.0)
    } else {
        0.0
    };
    if bucket > 0.0 {
        value += bucket * (bucket.ln() - (student.tail - student.all));
    }
    let mass = kept_mass + bucket;
    let kept = row.p.iter().zip(log_q);
    let gradient = RowGradient {
        kept: kept.map(|(p, log_q)| mass * log_q.exp() - p).collect(),
        tail_all: mass,
        tail_within: -bucket,
    };
    (value, gradient)
}

/// A divergence that is a sum of terms over the kept ids and the bucket; `term(p, q, ln p, ln q)` gives a term and g.
fn by_terms(
    row: &TeacherRow,
    log_q: &[f64],
    student: &Split,
    term: impl Fn(f64, f64, f64, f64) -> (f64, f64),
) -> (f64, RowGradient) {
    let kept_mass: f64 = row.p.iter().sum();
    let entries = row.p.iter().zip(&row.log_p).zip(log_q);
    let terms: Vec<(f64, f64)> = entries
        .map(|((&p, &log_p), &log_q)| term(p, log_q.exp(), log_p, log_q))
        .collect();
    let mut value: f64 = terms.iter().map(|(value, _)| value).sum();
    let mut mean: f64 = terms
        .iter()
        .zip(log_q)
        .map(|((_, g), log_q)| g * log_q.exp())
        .sum();
    let mut bucket_g = 0.0;
    if student.tail > f64::NEG_INFINITY {
        let p = (1.0 - kept_mass).max(BUCKET_MIN);
        let log_q = student.tail - student.all;
        let (bucket_value, g) = term(p, log_q.exp(), p.ln(), log_q);
        value += bucket_value;
        mean += g * log_q.exp();
        bucket_g = g;
    }
    let kept = terms.iter().zip(log_q);
    let gradient = RowGradient {
        kept: kept
            .map(|((_, g), log_q)| log_q.exp() * (g - mean))
            .collect(),
        tail_all: bucket_g - mean,
        tail_within: 0.0,
    };
    (value, gradient)
}
