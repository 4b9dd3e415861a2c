/*! Provides the linear equations of partial transport: how F, G and the level move together while full rows and columns
stay full, for Newton's step and for the way back.

```text
 full rows i      r_i (alpha_i + level) + sum_j T_ij beta_j = p_i        alpha_i = 0 elsewhere, beta_j alike
 full columns j   c_j (beta_j + level) + sum_i T_ij alpha_i = q_j
 the mass         sum_i r_i alpha_i + sum_j c_j beta_j + level sum T = s
 with alpha eliminated, I the full rows:
   c_j beta_j - sum_{i in I} T_ij (T beta)_i / r_i + level sum_{i not in I} T_ij = q_j - sum_{i in I} T_ij p_i / r_i
   sum_{i not in I} (T beta)_i + level sum_{i not in I} r_i = s - sum_{i in I} p_i
```

The way back of `<T(C), P>` solves them for `W = T o P`, p, q and s the sums of W; the gradient is
`T o (alpha + beta^T + level - P) / epsilon`.
*/

use crate::loss::objective::{ADJOINT, marginals};
use crate::loss::sinkhorn::{CgLimits, CgResult, Kernel, conjugate_gradients};

/// What rows that are not full hold at least, so that the level's equation has a solution.
const FADED: f64 = 1e-250;

/// The equations at `T = u K x`.
pub(super) struct System<'a> {
    kernel: &'a mut Kernel<f64>,
    u: Vec<f64>,
    x: Vec<f64>,
    /// `u^2 / r` of the full rows.
    rows: Vec<Option<f64>>,
    full_columns: Vec<bool>,
    /// c of the full columns, 1 of the others, and last what rows that are not full hold.
    diagonal: Vec<f64>,
    /// What those rows hold of each column that is full.
    open: Vec<f64>,
}

impl<'a> System<'a> {
    /// `rows` are the sums of those that are full.
    pub(super) fn new(
        kernel: &'a mut Kernel<f64>,
        (u, x): (Vec<f64>, Vec<f64>),
        (rows, full_columns): (Vec<Option<f64>>, Vec<bool>),
    ) -> Self {
        let mut open = vec![0.0; x.len()];
        kernel.pass(
            &x,
            &mut open,
            |i, _| if rows[i].is_none() { u[i] } else { 0.0 },
        );
        let mut all = vec![0.0; x.len()];
        kernel.pass(&x, &mut all, |i, _| u[i]);
        let mut held = 0.0;
        for ((open, all), x) in open.iter_mut().zip(&mut all).zip(&x) {
            *open *= x;
            *all *= x;
            held += *open;
        }
        let above_0 = |value: f64| if value > 0.0 { value } else { 1.0 };
        let diagonal = all.iter().zip(&full_columns);
        let diagonal = diagonal.map(|(&c, &full)| if full { above_0(c) } else { 1.0 });
        // Rows that hold nothing yet: however far the level must rise, it must.
        let is_open = rows.iter().any(Option::is_none);
        let held = if is_open { held.max(FADED) } else { 1.0 };
        let diagonal = diagonal.chain([held]).collect();
        for (open, full) in open.iter_mut().zip(&full_columns) {
            *open = if *full { *open } else { 0.0 };
        }
        let rows = rows.iter().zip(&u);
        Self {
            rows: rows.map(|(sum, u)| sum.map(|sum| u * u / sum)).collect(),
            kernel,
            u,
            x,
            full_columns,
            diagonal,
            open,
        }
    }

    /// beta and the level for the right-hand sides of both.
    pub(super) fn solve(&mut self, rhs: &[f64], limits: &CgLimits) -> CgResult {
        let Self {
            kernel,
            u,
            x,
            rows,
            full_columns,
            diagonal,
            open,
        } = self;
        let m = x.len();
        let (mut scaled, mut sums) = (vec![0.0; m], vec![0.0; m]);
        conjugate_gradients(rhs, diagonal, limits, |direction, out| {
            let (beta, level) = (&direction[..m], direction[m]);
            for ((scaled, beta), x) in scaled.iter_mut().zip(beta).zip(&*x) {
                *scaled = beta * x;
            }
            kernel.pass(&scaled, &mut sums, |i, sum| match rows[i] {
                Some(weight) => weight * sum,
                None => -level * u[i],
            });
            out[m] = if rows.iter().all(Option::is_some) {
                0.0
            } else {
                level * diagonal[m]
            };
            for j in 0..m {
                let along = diagonal[j] * beta[j];
                out[j] = if full_columns[j] {
                    along - x[j] * sums[j]
                } else {
                    along
                };
                out[m] += open[j] * beta[j];
            }
        })
    }
}

/// The gradient of `<T(C), P>`, and whether the equations were solved.
pub(super) fn pull_back(
    plan: &[f32],
    paid: &[f32],
    full: &(Vec<bool>, Vec<bool>),
    epsilon: f64,
) -> (Vec<f32>, bool) {
    let (n, m) = (full.0.len(), full.1.len());
    let wide: Vec<f64> = plan.iter().map(|&t| f64::from(t)).collect();
    let (r, _) = marginals(wide.iter().copied(), n, m);
    let costs = wide.iter().zip(paid).map(|(t, &paid)| t * f64::from(paid));
    let (row_cost, column_cost) = marginals(costs, n, m);
    let rows: Vec<Option<f64>> = full
        .0
        .iter()
        .zip(&r)
        .map(|(&full, &r)| (full && r > 0.0).then_some(r))
        .collect();
    let mut kernel = Kernel::new(n, m, wide);
    let mut rhs = vec![0.0; m];
    let share = |i: usize| rows[i].map_or(0.0, |r| row_cost[i] / r);
    kernel.pass(&vec![0.0; m], &mut rhs, |i, _| share(i));
    for ((rhs, column), &full) in rhs.iter_mut().zip(&column_cost).zip(&full.1) {
        *rhs = if full { column - *rhs } else { 0.0 };
    }
    let open = (0..n).filter(|&i| rows[i].is_none());
    rhs.push(open.map(|i| row_cost[i]).sum());
    let ones = (vec![1.0; n], vec![1.0; m]);
    let mut system = System::new(&mut kernel, ones, (rows.clone(), full.1.clone()));
    let CgResult { x, converged, .. } = system.solve(&rhs, &ADJOINT);
    let (beta, level) = (&x[..m], x[m]);
    kernel.pass(beta, &mut vec![0.0; m], |i, sum| {
        rows[i].map_or(0.0, |r| (row_cost[i] - sum) / r - level)
    });
    let alpha = &kernel.weights;
    let gradient = (0..n * m).map(|entry| {
        let (i, j) = (entry / m, entry % m);
        let potential = alpha[i] + beta[j] + level - f64::from(paid[entry]);
        (f64::from(plan[entry]) * potential / epsilon) as f32
    });
    (gradient.collect(), converged)
}
