/*! Provides the way of a gradient through a plan with given marginals.

`L = <T*,C>`, T* solving the problem for C. T* moves with C, so (implicit differentiation of the marginal constraints)

```text
 dL/dC = T + T o (alpha + beta^T - C) / epsilon,   W = T o C
 [diag r, T; T^T, diag c] [alpha; beta] = [W 1; W^T 1]
 (diag c - T^T diag(1/r) T) beta = W^T 1 - T^T (W 1 / r),   alpha = (W 1 - T beta) / r
```

Where the plan is solved for another cost C' than the one that is paid, dL/dC = T and dL/dC' = T o (alpha + beta^T - C) / epsilon.

Here r and c are the plan's actual marginals. Under soft ones (`epsilon / rho = tau`, marginal.rs) their equations read
`(1 + tau_a) r o alpha + T beta = W 1` and `T^T alpha + (1 + tau_b) c o beta = W^T 1`. Under exact ones adding a constant to a row or a column of C changes neither T nor the gradient.
*/

use rayon::prelude::*;

use super::sinkhorn::{CgLimits, CgResult, Kernel, conjugate_gradients};

/// Residual of the adjoint's equations: far below what f32 costs leave of the gradient.
pub(super) const ADJOINT: CgLimits = CgLimits {
    tolerance: 1e-9,
    steps: 1_000,
};

/// What goes through the plan, written over it, for a softness of the rows and one of the columns; also whether the
/// equations were solved.
pub(super) fn sharp_gradient(
    cost: &[f32],
    mut plan: Vec<f32>,
    (n, m): (usize, usize),
    (epsilon, softness): (f64, (f64, f64)),
) -> (Vec<f32>, bool) {
    let wide: Vec<f64> = plan.iter().map(|&t| f64::from(t)).collect();
    // Of the plan as it is stored: the equations are consistent with these only.
    let (mut r, mut c) = marginals(wide.iter().copied(), n, m);
    stiffen(&mut r, softness.0);
    stiffen(&mut c, softness.1);
    let costs = wide.iter().zip(cost).map(|(t, &c)| t * f64::from(c));
    let (row_cost, column_cost) = marginals(costs, n, m);
    let mut kernel = Kernel::<f64>::new(n, m, wide);
    let inverse_r: Vec<f64> = r.iter().map(|r| 1.0 / r).collect();

    // With x = 0 the weights do not depend on the row sums, and the pass gives T^T (W 1 / r).
    let mut rhs = vec![0.0; m];
    kernel.pass(&vec![0.0; m], &mut rhs, |i, _| row_cost[i] * inverse_r[i]);
    for (rhs, column) in rhs.iter_mut().zip(&column_cost) {
        *rhs = column - *rhs;
    }
    let CgResult {
        x: beta, converged, ..
    } = conjugate_gradients(&rhs, &c, &ADJOINT, |x, out| {
        kernel.pass(x, out, |i, sum| sum * inverse_r[i]);
        for ((out, x), c) in out.iter_mut().zip(x).zip(&c) {
            *out = c * x - *out;
        }
    });
    kernel.pass(&beta, &mut rhs, |i, sum| (row_cost[i] - sum) * inverse_r[i]);
    let alpha = kernel.weights;

    let rows = plan.par_chunks_mut(m).zip(cost.par_chunks(m)).zip(&alpha);
    rows.for_each(|((plan, cost), alpha)| {
        for ((t, &c), beta) in plan.iter_mut().zip(cost).zip(&beta) {
            *t *= ((alpha + beta - f64::from(c)) / epsilon) as f32;
        }
    });
    (plan, converged)
}

/// `(1 + tau) mass`. Where nothing is carried there is no equation: any number above 0 keeps it at 0 = 0.
fn stiffen(masses: &mut [f64], softness: f64) {
    for mass in masses {
        *mass = if *mass > 0.0 {
            (1.0 + softness) * *mass
        } else {
            1.0
        };
    }
}

/// Row and column sums of an `[n, m]` matrix.
pub(super) fn marginals(
    entries: impl Iterator<Item = f64>,
    n: usize,
    m: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (mut row, mut column) = (vec![0.0; n], vec![0.0; m]);
    for (k, entry) in entries.enumerate() {
        row[k / m] += entry;
        column[k % m] += entry;
    }
    (row, column)
}
