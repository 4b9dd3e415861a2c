/*! Provides entropic partial transport: the cheapest part of the mass (Benamou et al., 2015, section 5).

```text
 ln T_ij = F_i + G_j + level - C_ij / epsilon,   F, G <= 0,   F_i < 0 only where row i is full (sum a_i), G alike
 max D = <a,F> + <b,G> + mass level - sum T      over F, G <= 0 and the level
      F for G and the level:   F_i = min(0, ln a_i - ln sum_j exp(G_j + level - C_ij / epsilon))
      G and the level for F:   the level at which sum_j min(b_j, exp(level) t_j) is the mass
```

The two take turns, each the exact maximum, one pass over the kernel a turn. Where that is slow a Newton step on G and
the level takes over, with F eliminated and full rows and columns taken to stay full (capped.rs); it is kept when D
rises enough, or, close to the solution, when the error falls. Rows are as they should be after every pass; the error is
what columns hold above b, or beside it where G < 0, and what the mass is off, in L1.
*/

use super::capped::System;
use super::entropic::sinkhorn;
use super::softmax::log_sum;
use super::{Dependence, Entropic, Made, PlanOptions, Supported};
use crate::loss::error::{LossError, Result};
use crate::loss::sinkhorn::{CgLimits, Convergence, Kernel};

/// A mass from here on is all of it: both marginals are then kept.
const WHOLE: f64 = 1.0 - 1e-12;
/// Largest change of a logarithm before the kernel is built anew: what underflows in it is then nothing.
const DRIFT_MAX: f64 = 200.0;
/// F and G above this are 0 but for rounding.
const TOUCHING: f64 = -1e-12;
/// Column sums below this are taken from the costs, not from the kernel.
const FADED: f64 = 1e-100;
/// Turns before Newton is tried.
const WARM_UP: usize = 8;
/// Turns still to go, by their rate, above which Newton is cheaper.
const SLOW: f64 = 24.0;
/// Conjugate-gradient steps of one Newton step.
const CG_STEPS_MAX: usize = 60;
/// Times a step is halved before turns are taken again.
const HALVINGS_MAX: usize = 6;
/// Below this error a falling error is enough to keep a step.
const LOCAL_ERROR: f64 = 1e-2;

/// The plan of `options.mass`.
pub(super) fn partial<'a>(problem: &Supported, options: &PlanOptions) -> Result<Made<'a>> {
    if options.mass >= WHOLE {
        return sinkhorn(problem, options);
    }
    let mut solver = Solver::new(problem, options);
    let point = solver.run()?;
    solver.hold(&point.at);
    let convergence = Convergence {
        iterations: solver.passes,
        newton_steps: solver.newton_steps,
        marginal_error: point.error,
        converged: point.error <= options.tolerance,
    };
    let at = &point.at;
    let weighted = |masses: &[f64], logs: &[f64]| -> f64 {
        masses.iter().zip(logs).map(|(mass, log)| mass * log).sum()
    };
    let value = weighted(&problem.a, &at.f) + weighted(&problem.b, &at.g) + options.mass * at.level;
    let full = |logs: &[f64]| logs.iter().map(|&log| log < 0.0).collect();
    Ok(Made {
        plan: solver.kernel.data.iter().map(|&t| t as f32).collect(),
        convergence,
        entropic: Some(Entropic {
            value: options.epsilon * value,
            weight: 1.0,
        }),
        dependence: Dependence::Capped {
            epsilon: options.epsilon,
            full: (full(&at.f), full(&at.g)),
        },
    })
}

/// Logarithms of the scalings.
#[derive(Clone)]
struct Logs {
    f: Vec<f64>,
    g: Vec<f64>,
    level: f64,
}

/// Scalings, F made for the others, with what one pass says about them.
struct Point {
    at: Logs,
    /// Column sums of T.
    columns: Vec<f64>,
    dual: f64,
    error: f64,
}

struct Solver<'a> {
    problem: &'a Supported<'a>,
    options: &'a PlanOptions,
    /// Least cost of each row.
    base: Vec<f32>,
    kernel: Kernel<f64>,
    /// What the kernel holds.
    held: Logs,
    passes: usize,
    newton_steps: usize,
}

impl<'a> Solver<'a> {
    fn new(problem: &'a Supported<'a>, options: &'a PlanOptions) -> Self {
        let (n, m) = (problem.a.len(), problem.b.len());
        let least = |row: &[f32]| row.iter().copied().fold(f32::INFINITY, f32::min);
        let base: Vec<f32> = problem.cost.chunks(m).map(least).collect();
        let mut solver = Self {
            problem,
            options,
            kernel: Kernel::new(n, m, vec![0.0; n * m]),
            held: Logs {
                f: vec![0.0; n],
                g: vec![0.0; m],
                level: 0.0,
            },
            passes: 0,
            newton_steps: 0,
            base,
        };
        // No capacity binds: the level is that of the mass.
        let lowest = f64::from(least(&solver.base)) / options.epsilon;
        solver.hold(&Logs {
            level: lowest,
            ..solver.held.clone()
        });
        let sum: f64 = solver.kernel.data.iter().sum();
        solver.hold(&Logs {
            level: lowest + (options.mass / sum).ln(),
            ..solver.held.clone()
        });
        solver
    }

    /// Builds the kernel at these scalings: it is their plan.
    fn hold(&mut self, at: &Logs) {
        let epsilon = self.options.epsilon;
        let row = at.f.iter().zip(&self.base);
        let row: Vec<f64> = row
            .map(|(f, &base)| f + at.level - f64::from(base) / epsilon)
            .collect();
        let cost = &self.problem.cost;
        self.kernel.fill(cost, &self.base, &row, &at.g, epsilon);
        self.held = at.clone();
    }

    /// Takes turns and Newton steps to the tolerance or the limit.
    fn run(&mut self) -> Result<Point> {
        let mut point = self.evaluate(self.held.g.clone(), self.held.level);
        let mut previous = f64::INFINITY;
        let (mut newton_from, mut patience) = (self.passes + WARM_UP, WARM_UP);
        loop {
            if !point.error.is_finite() {
                return Err(LossError::NonFinite {
                    what: "transport plan",
                    position: 0,
                });
            }
            let limit = self.options.max_iterations;
            if point.error <= self.options.tolerance || self.passes >= limit {
                return Ok(point);
            }
            let slow = self.is_slow(previous, point.error);
            previous = point.error;
            if slow && self.passes >= newton_from {
                if let Some(next) = self.newton_step(&point) {
                    point = next;
                    // Whether turns are fast says nothing about a Newton step.
                    previous = 0.0;
                    continue;
                }
                patience *= 2;
                newton_from = self.passes + patience;
            }
            point = self.turn(&point);
        }
    }

    /// Whether the rate of the turns leaves more of them to go than Newton takes.
    fn is_slow(&self, previous: f64, error: f64) -> bool {
        let rate = error / previous;
        rate >= 1.0 || (self.options.tolerance / error).ln() / rate.ln() > SLOW
    }

    /// G and the level for F, and F for them.
    fn turn(&mut self, point: &Point) -> Point {
        let logs: Vec<f64> = (0..point.columns.len())
            .map(|j| self.column_log(point, j))
            .collect();
        let level = fill_to(&logs, &self.problem.b, self.options.mass);
        let g = logs.iter().zip(&self.problem.b);
        let g = g.map(|(log, b)| capped(b.ln() - log - level)).collect();
        self.evaluate(g, level)
    }

    /// The logarithm of a column's sum without G and the level.
    fn column_log(&self, point: &Point, j: usize) -> f64 {
        let sum = point.columns[j];
        if sum >= FADED {
            return sum.ln() - point.at.g[j] - point.at.level;
        }
        // The kernel may hold nothing of it: once the others are full it is this column's turn all the same.
        let column = self
            .problem
            .cost
            .iter()
            .skip(j)
            .step_by(point.columns.len());
        let logs = point.at.f.iter().zip(column);
        let logs = logs.map(|(f, &cost)| f - f64::from(cost) / self.options.epsilon);
        log_sum(logs)
    }

    /// F for G and the level, and the columns that follow.
    fn evaluate(&mut self, g: Vec<f64>, level: f64) -> Point {
        let f = self.held.f.clone();
        let mut at = Logs { f, g, level };
        if self.has_drifted(&at) {
            self.hold(&at);
        }
        let x = self.column_scalings(&at);
        let mut columns = vec![0.0; x.len()];
        let (a, held) = (&self.problem.a, &self.held.f);
        self.kernel.pass(&x, &mut columns, |i, sum| {
            // Without F the row would hold sum exp(-held).
            let f = if sum > 0.0 {
                (a[i].ln() - sum.ln() + held[i]).min(0.0)
            } else {
                held[i]
            };
            (f - held[i]).clamp(-2.0 * DRIFT_MAX, 2.0 * DRIFT_MAX).exp()
        });
        self.passes += 1;
        for ((f, held), u) in at.f.iter_mut().zip(held).zip(&self.kernel.weights) {
            *f = capped(held + u.ln());
        }
        for (column, x) in columns.iter_mut().zip(&x) {
            *column *= x;
        }
        if self.has_drifted(&at) {
            self.hold(&at);
        }
        self.point(at, columns)
    }

    fn point(&self, at: Logs, columns: Vec<f64>) -> Point {
        let (a, b, mass) = (&self.problem.a, &self.problem.b, self.options.mass);
        let total: f64 = columns.iter().sum();
        let mut error = (total - mass).abs();
        let mut dual = mass * at.level - total;
        for ((&g, &column), &b) in at.g.iter().zip(&columns).zip(b) {
            let above = column - b;
            error += if g < 0.0 { above.abs() } else { above.max(0.0) };
            dual += b * g;
        }
        dual += at.f.iter().zip(a).map(|(f, a)| a * f).sum::<f64>();
        Point {
            at,
            columns,
            dual,
            error,
        }
    }

    /// Scalings of the columns over the kernel, the level's among them.
    fn column_scalings(&self, at: &Logs) -> Vec<f64> {
        let level = at.level - self.held.level;
        let pairs = at.g.iter().zip(&self.held.g);
        pairs.map(|(g, held)| (g - held + level).exp()).collect()
    }

    fn has_drifted(&self, at: &Logs) -> bool {
        let far = |x: &[f64], y: &[f64]| x.iter().zip(y).any(|(x, y)| (x - y).abs() > DRIFT_MAX);
        let held = &self.held;
        (at.level - held.level).abs() > DRIFT_MAX || far(&at.f, &held.f) || far(&at.g, &held.g)
    }

    /// The point after one damped Newton step, or `None` when no step was good enough.
    fn newton_step(&mut self, point: &Point) -> Option<Point> {
        let (b, mass) = (&self.problem.b, self.options.mass);
        let total: f64 = point.columns.iter().sum();
        let columns = point.columns.iter().zip(b).zip(&point.at.g);
        let full = columns.map(|((&column, &b), &g)| g < 0.0 || column > b);
        let full: Vec<bool> = full.collect();
        let gap = |(full, (column, b)): (&bool, (&f64, &f64))| if *full { b - column } else { 0.0 };
        let mut gradient: Vec<f64> = full
            .iter()
            .zip(point.columns.iter().zip(b))
            .map(gap)
            .collect();
        gradient.push(mass - total);
        let delta = self.newton_direction(point, full, &gradient);
        let largest = delta.iter().fold(0.0_f64, |a, d| a.max(d.abs()));
        if !largest.is_finite() || largest == 0.0 {
            return None;
        }
        let mut step = (0.5 * DRIFT_MAX / largest).min(1.0);
        for _ in 0..=HALVINGS_MAX {
            let pairs = point.at.g.iter().zip(&delta);
            let g: Vec<f64> = pairs.map(|(g, d)| capped(g + step * d)).collect();
            let level = point.at.level + step * delta[b.len()];
            let moves = g.iter().zip(&point.at.g).map(|(new, old)| new - old);
            let moves = moves.chain([level - point.at.level]);
            let slope: f64 = moves.zip(&gradient).map(|(d, gradient)| d * gradient).sum();
            let trial = self.evaluate(g, level);
            let near = point.error < LOCAL_ERROR && trial.error < 0.9 * point.error;
            let rises = slope > 0.0 && trial.dual >= point.dual + 1e-4 * slope;
            if trial.error.is_finite() && (near || rises) {
                self.newton_steps += 1;
                return Some(trial);
            }
            if self.passes >= self.options.max_iterations {
                return None;
            }
            step *= 0.5;
        }
        None
    }

    fn newton_direction(&mut self, point: &Point, full: Vec<bool>, gradient: &[f64]) -> Vec<f64> {
        if self.has_drifted(&point.at) {
            self.hold(&point.at);
        }
        let x = self.column_scalings(&point.at);
        let u = point.at.f.iter().zip(&self.held.f);
        let u: Vec<f64> = u.map(|(f, held)| (f - held).exp()).collect();
        let rows = point.at.f.iter().zip(&self.problem.a);
        let rows = rows.map(|(&f, &a)| (f < 0.0).then_some(a)).collect();
        let limits = CgLimits {
            tolerance: (0.5 * point.error.sqrt()).min(0.1),
            steps: CG_STEPS_MAX.min(self.options.max_iterations.saturating_sub(self.passes)),
        };
        let mut system = System::new(&mut self.kernel, (u, x), (rows, full));
        let result = system.solve(gradient, &limits);
        self.passes += result.steps + 1;
        result.x
    }
}

/// At most 0, and 0 where only rounding is left.
fn capped(log: f64) -> f64 {
    if log > TOUCHING { 0.0 } else { log }
}

/// The level at which `sum_j min(b_j, exp(level + log_j))` is the mass.
fn fill_to(logs: &[f64], b: &[f64], mass: f64) -> f64 {
    // A column is full from `ln b_j - log_j` on; those that get nothing never are.
    let mut columns: Vec<(f64, f64, f64)> = logs
        .iter()
        .zip(b)
        .filter(|(log, _)| log.is_finite())
        .map(|(&log, &b)| (b.ln() - log, log, b))
        .collect();
    columns.sort_by(|x, y| x.0.total_cmp(&y.0));
    let largest = columns
        .iter()
        .map(|c| c.1)
        .fold(f64::NEG_INFINITY, f64::max);
    // What all columns from k on get per exp(level - largest).
    let mut open = vec![0.0; columns.len() + 1];
    for (k, column) in columns.iter().enumerate().rev() {
        open[k] = open[k + 1] + (column.1 - largest).exp();
    }
    let mut left = mass;
    for (column, open) in columns.iter().zip(&open) {
        let level = (left / open).ln() - largest;
        if level <= column.0 {
            return level;
        }
        left -= column.2;
        if left <= 0.0 {
            return column.0;
        }
    }
    columns.last().map_or(0.0, |column| column.0)
}
