/*! Provides Newton's step on the dual with the rows eliminated.

With u = a / K v the dual is `psi(log v) = sum_j b_j log v_j + sum_i a_i log u_i` (concave); its gradient is `b - c` with
c the column sums of T, and minus its Hessian is `A = diag(c) - T^T diag(1/a) T`. One product with A is one pass over
the kernel, the same as a Sinkhorn step, so `A delta = b - c` is solved by conjugate gradients, preconditioned with
1/c, only as exactly as the step deserves. Under soft marginals c grows by `tau` times the columns' targets and `1/a` is
`1 / ((1 + tau) r)`. A step is kept when the dual rises enough (Armijo) or, close to the
solution where rounding hides the dual's rise, when the marginal error falls; otherwise it is halved.
*/

use super::cg::{CgLimits, conjugate_gradients};
use super::scaling::{Point, Scaling};
use crate::loss::simd::Real;

/// Conjugate-gradient steps of one Newton step.
const CG_STEPS_MAX: usize = 60;
/// Times a step is halved before Sinkhorn takes over again.
const HALVINGS_MAX: usize = 6;
/// Below this error a falling error is enough to keep a step.
const LOCAL_ERROR: f64 = 1e-2;

impl<R: Real> Scaling<'_, R> {
    /// The point after one damped step, or `None` when no step was good enough.
    pub(super) fn newton_step(&mut self, point: &Point<R>) -> Option<Point<R>> {
        let pairs = point.target.iter().zip(&point.column_mass);
        let gradient: Vec<f64> = pairs.map(|(target, c)| target - c).collect();
        let delta = self.newton_direction(point, &gradient);
        let largest = delta.iter().fold(0.0_f64, |a, d| a.max(d.abs()));
        let slope: f64 = gradient.iter().zip(&delta).map(|(g, d)| g * d).sum();
        if !largest.is_finite() || slope <= 0.0 {
            return None;
        }
        let dual = self.dual(point);
        let mut step = (0.5 * R::SCALING_LOG_MAX / largest).min(1.0);
        for _ in 0..=HALVINGS_MAX {
            let v = point.v.iter().zip(&delta);
            let trial = self.evaluate(v.map(|(v, d)| v * (step * d).exp()).collect());
            let near = point.error < LOCAL_ERROR && trial.error < 0.9 * point.error;
            if trial.error.is_finite() && (near || self.dual(&trial) >= dual + 1e-4 * step * slope)
            {
                self.newton_steps += 1;
                return Some(self.keep_in_range(trial));
            }
            if self.passes >= self.options.max_iterations {
                return None;
            }
            step *= 0.5;
        }
        None
    }

    /// `psi` up to a constant.
    fn dual(&self, point: &Point<R>) -> f64 {
        let (rows, columns) = (&self.marginals.rows, &self.marginals.columns);
        let (v, u) = (&point.v, &point.u);
        let columns = columns.dual(|j| self.column[j] + v[j].ln(), |j| v[j].ln());
        let exact = rows.is_exact();
        let rows = rows.dual(|i| self.row_log(i, u[i]), |i| u[i].to_f64().ln());
        if exact {
            return columns + rows;
        }
        // The mass moves with the rows' own.
        columns + rows - point.column_mass.iter().sum::<f64>()
    }

    /// Solves `A delta = gradient` as exactly as the step deserves.
    fn newton_direction(&mut self, point: &Point<R>, gradient: &[f64]) -> Vec<f64> {
        let (rows, softness) = (&self.marginals.rows, self.marginals.columns.softness);
        // u^2 / ((1 + tau) r): from row sums of K (v x) to weights of the way back.
        let row_factor =
            |(i, &u): (usize, &R)| u * u * R::from_f64(rows.eliminated(i, || self.row_log(i, u)));
        let row_factor: Vec<R> = point.u.iter().enumerate().map(row_factor).collect();
        let diagonal = point.column_mass.iter().zip(&point.target);
        let diagonal: Vec<f64> = diagonal.map(|(c, target)| c + softness * target).collect();
        let limits = CgLimits {
            tolerance: (0.5 * point.error.sqrt()).min(0.1),
            steps: CG_STEPS_MAX.min(self.options.max_iterations.saturating_sub(self.passes)),
        };
        let (kernel, x) = (&mut self.kernel, &mut self.x);
        let result = conjugate_gradients(gradient, &diagonal, &limits, |d, out| {
            for ((x, d), v) in x.iter_mut().zip(d).zip(&point.v) {
                *x = R::from_f64(d * v);
            }
            kernel.pass(x, out, |i, sum| row_factor[i] * sum);
            for ((out, d), (v, c)) in out.iter_mut().zip(d).zip(point.v.iter().zip(&diagonal)) {
                *out = c * d - v * *out;
            }
        });
        self.passes += result.steps;
        result.x
    }
}
