/*! Provides the plans that are softmaxes of costs: attention of one side to the other, and the product of both.

```text
 row      T_ij = a_i p_ij,  p_ij = softmax_j(ln b_j - C_ij / epsilon)
          dC_ij = -T_ij (P_ij - sum_k p_ik P_ik) / epsilon
 mutual   T = softmax over all pairs of L_ij = ln a_i + ln b_j - 2 C_ij / epsilon - ln Z_i - ln W_j,
          Z_i = sum_j b_j exp(-C_ij / epsilon),  W_j = sum_i a_i exp(-C_ij / epsilon)
          D = T o (P - <T,P>)  is d<T,P>/dL,  R and Q the softmaxes of the rows and of the columns
          dC = -(2 D - R o (D 1) - Q o (1 D)) / epsilon
```
*/

use std::borrow::Cow;

use rayon::prelude::*;

use super::{Dependence, Entropic, Made, Supported};
use crate::loss::objective::marginals;
use crate::loss::sinkhorn::Convergence;

/// Rows whose sums of columns are added as one. Fixed, so that results do not depend on the number of threads.
const PART_ROWS: usize = 128;

/// Attention.
pub(super) fn row<'a>(problem: &Supported, epsilon: f64) -> Made<'a> {
    let m = problem.b.len();
    let (ln_b, sums) = (
        logs(&problem.b),
        row_sums(&problem.cost, &problem.b, epsilon),
    );
    let mut plan = vec![0.0; problem.cost.len()];
    let rows = plan.par_chunks_mut(m).zip(problem.cost.par_chunks(m));
    rows.zip(problem.a.par_iter().zip(&sums))
        .for_each(|((plan, cost), (a, sum))| {
            for ((t, &cost), ln_b) in plan.iter_mut().zip(cost).zip(&ln_b) {
                *t = (a * (ln_b - f64::from(cost) / epsilon - sum).exp()) as f32;
            }
        });
    let value: f64 = problem.a.iter().zip(&sums).map(|(a, sum)| a * sum).sum();
    Made {
        plan,
        convergence: Convergence::default(),
        entropic: Some(Entropic {
            value: -epsilon * value,
            weight: 1.0,
        }),
        dependence: Dependence::Row { epsilon },
    }
}

/// The gradient of `<T(C), P>`, written over T.
pub(super) fn row_pull_back(mut plan: Vec<f32>, paid: &[f32], m: usize, epsilon: f64) -> Vec<f32> {
    let rows = plan.par_chunks_mut(m).zip(paid.par_chunks(m));
    rows.for_each(|(plan, paid)| {
        let (mut mass, mut cost) = (0.0, 0.0);
        for (&t, &paid) in plan.iter().zip(paid) {
            mass += f64::from(t);
            cost += f64::from(t) * f64::from(paid);
        }
        let mean = if mass > 0.0 { cost / mass } else { 0.0 };
        for (t, &paid) in plan.iter_mut().zip(paid) {
            *t = (-f64::from(*t) * (f64::from(paid) - mean) / epsilon) as f32;
        }
    });
    plan
}

/// What the product of two attentions needs on its way back.
pub(super) struct Mutual<'a> {
    cost: Cow<'a, [f32]>,
    epsilon: f64,
    rows: Logs,
    columns: Logs,
}

/// Logarithms of one side's masses, and of the sums of its softmaxes.
struct Logs {
    masses: Vec<f64>,
    sums: Vec<f64>,
}

/// The product of two attentions.
pub(super) fn mutual(problem: Supported<'_>, epsilon: f64) -> Made<'_> {
    let Supported { cost, a, b } = problem;
    let mutual = Mutual {
        rows: Logs {
            masses: logs(&a),
            sums: row_sums(&cost, &b, epsilon),
        },
        columns: Logs {
            masses: logs(&b),
            sums: column_sums(&cost, &a, b.len(), epsilon),
        },
        cost,
        epsilon,
    };
    Made {
        plan: mutual.plan(),
        convergence: Convergence::default(),
        entropic: None,
        dependence: Dependence::Mutual(mutual),
    }
}

impl Mutual<'_> {
    fn plan(&self) -> Vec<f32> {
        let m = self.columns.masses.len();
        let row = |i: usize| {
            let start = self.rows.masses[i] - self.rows.sums[i];
            let columns = self.columns.masses.iter().zip(&self.columns.sums);
            let cost = &self.cost[i * m..(i + 1) * m];
            cost.iter().zip(columns).map(move |(&cost, (ln_b, sum))| {
                start + ln_b - sum - 2.0 * f64::from(cost) / self.epsilon
            })
        };
        let n = self.rows.masses.len();
        let sums: Vec<f64> = (0..n).into_par_iter().map(|i| log_sum(row(i))).collect();
        let sum = log_sum(sums.iter().copied());
        let mut plan = vec![0.0; n * m];
        plan.par_chunks_mut(m).enumerate().for_each(|(i, plan)| {
            for (t, log) in plan.iter_mut().zip(row(i)) {
                *t = (log - sum).exp() as f32;
            }
        });
        plan
    }

    /// The gradient of `<T(C), P>` of a plan T.
    pub(super) fn pull_back(&self, plan: &[f32], paid: &[f32]) -> Vec<f32> {
        let (n, m) = (self.rows.masses.len(), self.columns.masses.len());
        let pairs = || plan.iter().zip(paid);
        let wide = |(&t, &paid): (&f32, &f32)| (f64::from(t), f64::from(paid));
        let total: f64 = pairs().map(wide).map(|(t, _)| t).sum();
        let mean = pairs().map(wide).map(|(t, paid)| t * paid).sum::<f64>() / total;
        let direct = pairs().map(wide).map(|(t, paid)| t * (paid - mean));
        let (row_sums, column_sums) = marginals(direct, n, m);
        let mut gradient = vec![0.0; n * m];
        gradient.par_chunks_mut(m).enumerate().for_each(|(i, out)| {
            for (j, out) in out.iter_mut().enumerate() {
                let entry = i * m + j;
                let (t, paid) = wide((&plan[entry], &paid[entry]));
                let exponent = -f64::from(self.cost[entry]) / self.epsilon;
                let r = (self.columns.masses[j] + exponent - self.rows.sums[i]).exp();
                let q = (self.rows.masses[i] + exponent - self.columns.sums[j]).exp();
                let along = 2.0 * t * (paid - mean) - r * row_sums[i] - q * column_sums[j];
                *out = (-along / self.epsilon) as f32;
            }
        });
        gradient
    }
}

fn logs(masses: &[f64]) -> Vec<f64> {
    masses.iter().map(|mass| mass.ln()).collect()
}

/// `ln sum exp`.
pub(super) fn log_sum(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    largest
        + values
            .map(|value| (value - largest).exp())
            .sum::<f64>()
            .ln()
}

/// `ln sum_j b_j exp(-C_ij / epsilon)`.
fn row_sums(cost: &[f32], b: &[f64], epsilon: f64) -> Vec<f64> {
    let ln_b = logs(b);
    let row = |cost: &[f32]| {
        let pairs = cost.iter().zip(&ln_b);
        log_sum(pairs.map(|(&cost, ln_b)| ln_b - f64::from(cost) / epsilon))
    };
    cost.par_chunks(b.len()).map(row).collect()
}

/// `ln sum_i a_i exp(-C_ij / epsilon)`.
fn column_sums(cost: &[f32], a: &[f64], m: usize, epsilon: f64) -> Vec<f64> {
    let part = |(cost, a): (&[f32], &[f64])| {
        let (mut largest, mut sums) = (vec![f64::NEG_INFINITY; m], vec![0.0; m]);
        let log = |cost: f32, ln_a: f64| ln_a - f64::from(cost) / epsilon;
        for (cost, a) in cost.chunks(m).zip(a) {
            for (largest, &cost) in largest.iter_mut().zip(cost) {
                *largest = largest.max(log(cost, a.ln()));
            }
        }
        for (cost, a) in cost.chunks(m).zip(a) {
            for ((sum, largest), &cost) in sums.iter_mut().zip(&largest).zip(cost) {
                *sum += (log(cost, a.ln()) - largest).exp();
            }
        }
        let pairs = largest.iter().zip(&sums);
        pairs.map(|(largest, sum)| largest + sum.ln()).collect()
    };
    let parts = cost.par_chunks(PART_ROWS * m).zip(a.par_chunks(PART_ROWS));
    let parts: Vec<Vec<f64>> = parts.map(part).collect();
    (0..m)
        .map(|j| log_sum(parts.iter().map(|part| part[j])))
        .collect()
}
