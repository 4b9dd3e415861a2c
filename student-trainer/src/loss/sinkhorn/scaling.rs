//! Provides the scaling iteration: Sinkhorn steps, the choice of when Newton takes over, and absorption.

use super::kernel::Kernel;
use super::marginal::Marginals;
use super::{Convergence, Solution, SolverOptions};
use crate::loss::error::{LossError, Result};
use crate::loss::simd::Real;

/// Sinkhorn steps before the rate of convergence is judged.
const WARM_UP: usize = 8;
/// Sinkhorn steps still to go, by that rate, above which Newton is cheaper.
const SLOW: f64 = 24.0;
/// Newton points without progress after which rounding is taken to be the limit.
const STALLED: usize = 3;

/// Scalings relative to the kernel, with what one pass says about them.
#[derive(Clone)]
pub(super) struct Point<R> {
    /// `[m]`.
    pub(super) v: Vec<f64>,
    /// `[n]`, `a / K v`, or its power under a soft marginal: rows are as they should be.
    pub(super) u: Vec<R>,
    /// Column sums of `u K v`.
    pub(super) column_mass: Vec<f64>,
    /// What they should be.
    pub(super) target: Vec<f64>,
    /// Their L1 distance to it.
    pub(super) error: f64,
}

/// The state of one solve. Potentials are in units of epsilon.
pub(super) struct Scaling<'a, R> {
    cost: &'a [f32],
    /// Least cost of each row.
    pub(super) base: &'a [f32],
    pub(super) marginals: &'a Marginals,
    pub(super) options: &'a SolverOptions,
    pub(super) kernel: Kernel<R>,
    pub(super) x: Vec<R>,
    pub(super) passes: usize,
    pub(super) newton_steps: usize,
    pub(super) row: Vec<f64>,
    pub(super) column: Vec<f64>,
    /// Masses of the rows.
    row_mass: Vec<R>,
    point: Point<R>,
}

impl<'a, R: Real> Scaling<'a, R> {
    pub(super) fn new(
        cost: &'a [f32],
        base: &'a [f32],
        (row, column): (Vec<f64>, Vec<f64>),
        marginals: &'a Marginals,
        options: &'a SolverOptions,
    ) -> Self {
        let (n, m) = (row.len(), column.len());
        let mut kernel = Kernel::new(n, m, vec![R::default(); n * m]);
        kernel.fill(cost, base, &row, &column, options.epsilon);
        Self {
            cost,
            base,
            marginals,
            options,
            kernel,
            x: vec![R::default(); m],
            passes: 0,
            newton_steps: 0,
            row,
            column,
            row_mass: marginals
                .rows
                .masses()
                .into_iter()
                .map(R::from_f64)
                .collect(),
            point: Point {
                v: vec![1.0; m],
                u: vec![R::from_f64(1.0); n],
                column_mass: vec![0.0; m],
                target: Vec::new(),
                error: f64::INFINITY,
            },
        }
    }

    /// Iterates to the tolerance or the limit. `false` when rounding in R is what stands in the way.
    pub(super) fn run(&mut self) -> Result<bool> {
        let mut point = self.evaluate(vec![1.0; self.kernel.m]);
        let mut previous = f64::INFINITY;
        let (mut newton_from, mut patience, mut in_newton) =
            (self.passes + WARM_UP, WARM_UP, false);
        let (mut best, mut since_best) = (f64::INFINITY, 0);
        loop {
            if !point.error.is_finite() {
                return Err(LossError::NonFinite {
                    what: "transport plan",
                    position: 0,
                });
            }
            if point.error <= self.options.tolerance || self.passes >= self.options.max_iterations {
                self.point = point;
                return Ok(true);
            }
            since_best = if point.error < 0.9 * best {
                0
            } else {
                since_best + 1
            };
            best = best.min(point.error);
            if in_newton && R::ROUNDING > 1e-12 && best < 1e-4 && since_best >= STALLED {
                self.point = point;
                return Ok(false);
            }
            let slow = in_newton || self.is_slow(previous, point.error);
            previous = point.error;
            let newton = self.options.newton && slow && self.passes >= newton_from;
            point = match if newton {
                self.newton_step(&point)
            } else {
                None
            } {
                Some(next) => {
                    in_newton = true;
                    next
                }
                None => {
                    if newton {
                        patience *= 2;
                        newton_from = self.passes + patience;
                        in_newton = false;
                    }
                    self.sinkhorn_step(point)
                }
            };
        }
    }

    /// Whether Sinkhorn's rate leaves more steps to go than Newton takes.
    fn is_slow(&self, previous: f64, error: f64) -> bool {
        let rate = error / previous;
        rate >= 1.0 || (self.options.tolerance / error).ln() / rate.ln() > SLOW
    }

    /// `v = b / K^T u`, and the rows after it.
    fn sinkhorn_step(&mut self, point: Point<R>) -> Point<R> {
        let columns = &self.marginals.columns;
        let mut v = point.v;
        for (j, (v, &mass)) in v.iter_mut().zip(&point.column_mass).enumerate() {
            *v *= columns.scaling(j, mass, || self.column[j] + v.ln());
        }
        self.move_to(v, &point.u)
    }

    /// The point at v; the scalings are absorbed first when they have grown large.
    fn move_to(&mut self, v: Vec<f64>, u: &[R]) -> Point<R> {
        if !in_range::<R>(&v, u) {
            self.absorb(&v, u);
            return self.evaluate(vec![1.0; self.kernel.m]);
        }
        self.evaluate(v)
    }

    /// The same point, with its scalings absorbed if they have grown large.
    pub(super) fn keep_in_range(&mut self, point: Point<R>) -> Point<R> {
        if in_range(&point.v, &point.u) {
            return point;
        }
        self.absorb(&point.v, &point.u);
        self.evaluate(vec![1.0; self.kernel.m])
    }

    /// Moves the scalings into the potentials and builds the kernel anew; its entries are then at most the plan's.
    fn absorb(&mut self, v: &[f64], u: &[R]) {
        for (potential, u) in self.row.iter_mut().zip(u) {
            *potential += u.to_f64().ln();
        }
        for (potential, v) in self.column.iter_mut().zip(v) {
            *potential += v.ln();
        }
        self.kernel.fill(
            self.cost,
            self.base,
            &self.row,
            &self.column,
            self.options.epsilon,
        );
    }

    /// One pass: rows from v, and the columns that follow.
    pub(super) fn evaluate(&mut self, v: Vec<f64>) -> Point<R> {
        for (x, &v) in self.x.iter_mut().zip(&v) {
            *x = R::from_f64(v);
        }
        let mut column_mass = vec![0.0; self.kernel.m];
        let (rows, columns) = (&self.marginals.rows, &self.marginals.columns);
        let (kernel, x) = (&mut self.kernel, &self.x);
        if rows.is_exact() {
            let a = &self.row_mass;
            kernel.pass(x, &mut column_mass, |i, sum| a[i] / sum);
        } else {
            let (row, base, epsilon) = (&self.row, self.base, self.options.epsilon);
            kernel.pass(x, &mut column_mass, |i, sum| {
                let held = || row[i] + f64::from(base[i]) / epsilon;
                R::from_f64(rows.scaling(i, sum.to_f64(), held))
            });
        }
        self.passes += 1;
        let target: Vec<f64> = (0..v.len())
            .map(|j| columns.target(j, || self.column[j] + v[j].ln()))
            .collect();
        let mut error = 0.0;
        for ((mass, x), target) in column_mass.iter_mut().zip(x).zip(&target) {
            *mass *= x.to_f64();
            error += (*mass - target).abs();
        }
        Point {
            v,
            u: self.kernel.weights.clone(),
            column_mass,
            target,
            error,
        }
    }

    /// The logarithm of a row's whole scaling, `F_i + ln a_i`, where its scaling over the kernel is u.
    pub(super) fn row_log(&self, i: usize, u: R) -> f64 {
        self.row[i] + f64::from(self.base[i]) / self.options.epsilon + u.to_f64().ln()
    }

    /// Potentials after the scalings.
    pub(super) fn into_potentials(mut self) -> (Vec<f64>, Vec<f64>) {
        let point = self.point;
        for (potential, u) in self.row.iter_mut().zip(&point.u) {
            *potential += u.to_f64().ln();
        }
        for (potential, v) in self.column.iter_mut().zip(&point.v) {
            *potential += v.ln();
        }
        (self.row, self.column)
    }

    /// The plan `u K v`, written over the kernel, with its own marginals.
    pub(super) fn into_solution(mut self) -> Solution {
        let epsilon = self.options.epsilon;
        for (x, &v) in self.x.iter_mut().zip(&self.point.v) {
            *x = R::from_f64(v);
        }
        let (row_mass, column_mass) = self.kernel.scale(&self.point.u, &self.x);
        let plan = R::into_f32(std::mem::take(&mut self.kernel.data));
        let pairs = column_mass.iter().zip(&self.point.target);
        let marginal_error = pairs.map(|(mass, target)| (mass - target).abs()).sum();
        let converged = self.point.error <= self.options.tolerance;
        let (iterations, newton_steps) = (self.passes, self.newton_steps);
        let base = self.base;
        let (row, column) = self.into_potentials();
        let row = row.into_iter().zip(base);
        Solution {
            plan,
            row_potential: row
                .map(|(f, &base)| f64::from(base) + f * epsilon)
                .collect(),
            column_potential: column.into_iter().map(|g| g * epsilon).collect(),
            row_mass,
            column_mass,
            convergence: Convergence {
                iterations,
                newton_steps,
                marginal_error,
                converged,
            },
        }
    }
}

fn in_range<R: Real>(v: &[f64], u: &[R]) -> bool {
    let bound = R::SCALING_LOG_MAX.exp();
    let inside = |s: f64| s <= bound && s >= 1.0 / bound;
    v.iter().all(|&s| inside(s)) && u.iter().all(|s| inside(s.to_f64()))
}
