/*! Provides the solver of entropic optimal transport, marginals exact or soft.

```text
 cost C [n, m] ──> potentials f, g from row and column minima ──> K = exp((f + g - C) / epsilon)
      a few Sinkhorn steps (v = b / K^T u, u = a / K v) ──> converging fast? go on
                                                       └──> slow: damped Newton-CG on the dual, Sinkhorn where it fails
      scalings that grow large move into f and g, and K is built anew ──> plan T = u K v
```

The scaling form costs one multiplication an entry where the log domain costs an exponential. Moving large scalings
into the potentials (absorption: Schmitzer, "Stabilized sparse scaling algorithms", 2019) makes it safe at every
epsilon: an entry that underflows in K is then below e^-40 of its row whatever the scalings do next. Rows are exact
after every step (u is computed from v), so the error reported is that of the columns, in L1, at total mass 1.
*/

mod cg;
mod kernel;
mod marginal;
mod newton;
mod scaling;

pub(crate) use cg::{CgLimits, CgResult, conjugate_gradients};
pub(crate) use kernel::Kernel;
pub(crate) use marginal::{Marginals, Side};
use scaling::Scaling;

use rayon::prelude::*;
use serde::Serialize;

use super::error::{LossError, Result};
use super::simd::{lanes_fold, vectorized};
use kernel::PART_ROWS;

/// Problems smaller than this are solved in f64: they cost nothing.
const F32_ENTRIES_MIN: usize = 1 << 14;
/// f32 cannot promise less than this.
const F32_TOLERANCE_MIN: f64 = 5e-7;
/// Potentials above this many units of epsilon round to more than 4e-6 in f32.
const F32_POTENTIAL_MAX: f64 = 64.0;
/// With masses below this, what underflows in f32 may no longer be nothing beside its row.
const F32_MASS_MIN: f64 = 1e-6;

/// How to solve.
#[derive(Clone, Copy, Debug)]
pub struct SolverOptions {
    /// Entropic regularisation, in units of the cost.
    pub epsilon: f64,
    /// L1 marginal error at which to stop.
    pub tolerance: f64,
    /// Most passes over the kernel.
    pub max_iterations: usize,
    /// Whether Newton may take over where Sinkhorn is slow.
    pub newton: bool,
}

/// What the solver found.
#[derive(Clone, Debug)]
pub struct Solution {
    /// `T [n, m]`, row-major.
    pub plan: Vec<f32>,
    /// `f [n]` in units of the cost: `T_ij = exp((f_i + g_j - C_ij) / epsilon)`.
    pub row_potential: Vec<f64>,
    /// `g [m]`.
    pub column_potential: Vec<f64>,
    /// Row sums of the plan.
    pub row_mass: Vec<f64>,
    /// Column sums of the plan.
    pub column_mass: Vec<f64>,
    /// How it was found.
    pub convergence: Convergence,
}

/// How a solver fared in a problem, or the worst of several.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Convergence {
    /// Passes over the kernel: Sinkhorn steps, line searches and conjugate-gradient steps.
    pub iterations: usize,
    /// Newton steps; of several problems, of all of them.
    pub newton_steps: usize,
    /// L1 distance of the column masses to what they should be; rows are exact.
    pub marginal_error: f64,
    /// Whether the error met the tolerance, and the adjoint of `sharp` was solved.
    pub converged: bool,
}

impl Default for Convergence {
    /// Of no problem.
    fn default() -> Self {
        Self {
            iterations: 0,
            newton_steps: 0,
            marginal_error: 0.0,
            converged: true,
        }
    }
}

impl Convergence {
    /// Takes another problem in.
    pub(crate) fn add(&mut self, other: Self) {
        self.iterations = self.iterations.max(other.iterations);
        self.newton_steps += other.newton_steps;
        self.marginal_error = self.marginal_error.max(other.marginal_error);
        self.converged &= other.converged;
    }
}

/// Solves `min <T,C> - epsilon H(T)` over plans with marginals 1/n and 1/m.
///
/// # Shapes
/// `cost`: `[n, m]`, row-major.
///
/// # Errors
/// [`LossError::NonFinite`] if a cost is NaN or infinite, [`LossError::Shape`] if the lengths do not fit. Not meeting
/// the tolerance is no error: `converged` says so.
pub fn solve(cost: &[f32], n: usize, m: usize, options: &SolverOptions) -> Result<Solution> {
    solve_between(cost, &Marginals::even(n, m), options)
}

/// [`solve`] with any marginals. Where one of them is soft, the plan minimises `<T,C> + epsilon KL(T | a b^T)` and the
/// penalties, with `KL(x | y) = sum x ln(x / y) - x + y`.
pub(crate) fn solve_between(
    cost: &[f32],
    marginals: &Marginals,
    options: &SolverOptions,
) -> Result<Solution> {
    let (n, m) = (marginals.rows.len(), marginals.columns.len());
    if n == 0 || m == 0 || cost.len() != n * m {
        return Err(LossError::shape(
            "cost matrix",
            format!("{n} x {m} entries, at least one"),
            cost.len(),
        ));
    }
    let (base, column) = reduced_potentials(cost, m, options.epsilon)?;
    let largest = column.iter().fold(0.0, |a, &b| f64::max(a, b));
    let single = cost.len() >= F32_ENTRIES_MIN
        && marginals.are_exact()
        && marginals.least() >= F32_MASS_MIN
        && options.tolerance >= F32_TOLERANCE_MIN
        && largest <= F32_POTENTIAL_MAX;
    let (mut passes, mut newton_steps) = (0, 0);
    let mut potentials = if marginals.are_exact() {
        (vec![0.0; n], column)
    } else {
        soft_potentials(cost, &base, marginals, options.epsilon)
    };
    if single {
        let mut scaling = Scaling::<f32>::new(cost, &base, potentials, marginals, options);
        if scaling.run()? {
            return Ok(scaling.into_solution());
        }
        // Rounding drowned the last digits: go on in f64 from here.
        (passes, newton_steps) = (scaling.passes, scaling.newton_steps);
        potentials = scaling.into_potentials();
    }
    let mut scaling = Scaling::<f64>::new(cost, &base, potentials, marginals, options);
    (scaling.passes, scaling.newton_steps) = (passes, newton_steps);
    scaling.run()?;
    Ok(scaling.into_solution())
}

/// The least cost of each row, and column potentials in units of epsilon, that leave every row and every column of
/// `C - base - g >= 0` a zero.
fn reduced_potentials(cost: &[f32], m: usize, epsilon: f64) -> Result<(Vec<f32>, Vec<f64>)> {
    let mut base = vec![0.0; cost.len() / m];
    let part = |(cost, base): (&[f32], &mut [f32])| {
        let mut column = vec![f32::INFINITY; m];
        least_costs(cost, base, &mut column);
        column
    };
    let parts = cost
        .par_chunks(PART_ROWS * m)
        .zip(base.par_chunks_mut(PART_ROWS));
    let columns: Vec<Vec<f32>> = parts.map(part).collect();
    if let Some(position) = base.iter().position(|base| !base.is_finite()) {
        return Err(LossError::NonFinite {
            what: "transport cost",
            position,
        });
    }
    let least = |j: usize| columns.iter().fold(f32::INFINITY, |a, c| a.min(c[j]));
    let column = (0..m).map(|j| f64::from(least(j)) / epsilon).collect();
    Ok((base, column))
}

/// Potentials to start from under soft marginals: those of a constant cost, the least one, and then for each row, and each
/// column after that, what it would answer to its own least cost. Those of the rows are without their base.
fn soft_potentials(
    cost: &[f32],
    base: &[f32],
    marginals: &Marginals,
    epsilon: f64,
) -> (Vec<f64>, Vec<f64>) {
    let (rows, columns) = (&marginals.rows, &marginals.columns);
    let least = base.iter().copied().fold(f32::INFINITY, f32::min);
    // g of the constant cost c is rho_b c / (rho_a + rho_b + epsilon).
    let (tau, other) = (columns.softness, rows.softness);
    let constant = other * f64::from(least) / epsilon / (tau + other + tau * other);
    let row: Vec<f64> = base
        .iter()
        .map(|&base| (f64::from(base) / epsilon - constant) / (1.0 + rows.softness))
        .collect();
    let mut column = vec![f64::INFINITY; columns.len()];
    for (cost, row) in cost.chunks(columns.len()).zip(&row) {
        for (column, &cost) in column.iter_mut().zip(cost) {
            *column = column.min(f64::from(cost) / epsilon - row);
        }
    }
    let row = row
        .iter()
        .zip(base)
        .enumerate()
        .map(|(i, (row, &base))| row - f64::from(base) / epsilon + rows.mass(i).ln());
    let column = column
        .iter()
        .enumerate()
        .map(|(j, column)| column / (1.0 + columns.softness) + columns.mass(j).ln());
    (row.collect(), column.collect())
}

vectorized! {
    /// The least cost of each row (NaN when a cost of the row is not finite) and, where they are smaller than what is
    /// there, the least of each column above its row's.
    fn least_costs<'a>(cost: &'a [f32], base: &'a mut [f32], column: &'a mut [f32]) -> () {
        for (costs, base) in cost.chunks(column.len()).zip(base) {
            // 0 x is 0 for a finite x and NaN for all others.
            let probe = lanes_fold(costs, 0.0, |sum, cost| sum + 0.0 * cost);
            let least = lanes_fold(costs, f32::INFINITY, |a, b| if b < a { b } else { a });
            *base = least + probe;
            for (column, &cost) in column.iter_mut().zip(costs) {
                let above = cost - least;
                *column = if above < *column { above } else { *column };
            }
        }
    }
}

#[cfg(test)]
mod tests;
