/*! Provides the two objectives of a solved transport problem, each with its exact gradient.

`entropic`: `F = <T,C> - epsilon H(T)` with `H(T) = -sum T ln T`, C including the position prior. By the envelope
theorem dF/dC = T.

`sharp`: `L = <T*,C>` without the prior, T* solving the problem with it. T* moves with C, so (implicit
differentiation of the marginal constraints)

```text
 dL/dC = G = T o (1 + (alpha + beta^T - C) / epsilon),   W = T o C
 [diag r, T; T^T, diag c] [alpha; beta] = [W 1; W^T 1]
 (diag c - T^T diag(1/r) T) beta = W^T 1 - T^T (W 1 / r),   alpha = (W 1 - T beta) / r
```

with r and c the plan's actual marginals. Adding a constant to a row or a column of C changes neither T nor G.
*/

use rayon::prelude::*;

use super::config::Objective;
use super::sinkhorn::{CgLimits, CgResult, Kernel, Solution, conjugate_gradients};

/// Residual of the adjoint's equations: far below what f32 costs leave of the gradient.
const ADJOINT: CgLimits = CgLimits {
    tolerance: 1e-9,
    steps: 1_000,
};

/// An objective at the solution.
pub(crate) struct Value {
    /// F or L.
    pub(crate) value: f64,
    /// `<T,C>` without the prior.
    pub(crate) transport_cost: f64,
    /// dvalue/dC `[n, m]`.
    pub(crate) gradient: Vec<f32>,
    /// Whether the adjoint's equations were solved (always, where there are none).
    pub(crate) converged: bool,
}

/// The objective of `solution`, whose plan is used up; `cost` is without the prior.
pub(crate) fn evaluate(
    objective: Objective,
    cost: &[f32],
    solution: &mut Solution,
    epsilon: f64,
) -> Value {
    let plan = std::mem::take(&mut solution.plan);
    let transport_cost = inner(&plan, cost);
    match objective {
        Objective::Entropic => Value {
            // T = exp((f + g - C)/epsilon) makes <T,C> + epsilon <T, ln T> this sum.
            value: weighted(&solution.row_mass, &solution.row_potential)
                + weighted(&solution.column_mass, &solution.column_potential),
            transport_cost,
            gradient: plan,
            converged: true,
        },
        Objective::Detached => Value {
            value: transport_cost,
            transport_cost,
            gradient: plan,
            converged: true,
        },
        Objective::Sharp => {
            let (gradient, converged) = sharp_gradient(cost, plan, solution, epsilon);
            Value {
                value: transport_cost,
                transport_cost,
                gradient,
                converged,
            }
        }
    }
}

/// G of the module's text, written over the plan.
fn sharp_gradient(
    cost: &[f32],
    mut plan: Vec<f32>,
    solution: &Solution,
    epsilon: f64,
) -> (Vec<f32>, bool) {
    let (r, c) = (&solution.row_mass, &solution.column_mass);
    let (n, m) = (r.len(), c.len());
    let wide = plan.iter().map(|&t| f64::from(t)).collect();
    let mut kernel = Kernel::<f64>::new(n, m, wide);
    let (row_cost, column_cost) = marginal_costs(&plan, cost, n, m);
    let inverse_r: Vec<f64> = r.iter().map(|r| 1.0 / r).collect();

    // With x = 0 the weights do not depend on the row sums, and the pass gives T^T (W 1 / r).
    let mut rhs = vec![0.0; m];
    kernel.pass(&vec![0.0; m], &mut rhs, |i, _| row_cost[i] * inverse_r[i]);
    for (rhs, column) in rhs.iter_mut().zip(&column_cost) {
        *rhs = column - *rhs;
    }
    let CgResult {
        x: beta, converged, ..
    } = conjugate_gradients(&rhs, c, &ADJOINT, |x, out| {
        kernel.pass(x, out, |i, sum| sum * inverse_r[i]);
        for ((out, x), c) in out.iter_mut().zip(x).zip(c) {
            *out = c * x - *out;
        }
    });
    kernel.pass(&beta, &mut rhs, |i, sum| (row_cost[i] - sum) * inverse_r[i]);
    let alpha = kernel.weights;

    let rows = plan.par_chunks_mut(m).zip(cost.par_chunks(m)).zip(&alpha);
    rows.for_each(|((plan, cost), alpha)| {
        for ((t, &c), beta) in plan.iter_mut().zip(cost).zip(&beta) {
            *t *= (1.0 + (alpha + beta - f64::from(c)) / epsilon) as f32;
        }
    });
    (plan, converged)
}

/// `W 1` and `W^T 1` of `W = T o C`.
fn marginal_costs(plan: &[f32], cost: &[f32], n: usize, m: usize) -> (Vec<f64>, Vec<f64>) {
    let mut row = Vec::with_capacity(n);
    let mut column = vec![0.0; m];
    for (plan, cost) in plan.chunks(m).zip(cost.chunks(m)) {
        let mut sum = 0.0;
        for ((&t, &c), column) in plan.iter().zip(cost).zip(&mut column) {
            let w = f64::from(t) * f64::from(c);
            sum += w;
            *column += w;
        }
        row.push(sum);
    }
    (row, column)
}

fn inner(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

fn weighted(mass: &[f64], potential: &[f64]) -> f64 {
    mass.iter().zip(potential).map(|(m, p)| m * p).sum()
}
