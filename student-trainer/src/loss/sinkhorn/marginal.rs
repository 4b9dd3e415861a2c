/*! Provides what a plan owes to its marginals: on each side exactly, or as nearly as a penalty makes it.

With `rho KL(T 1 | a)` in the place of `T 1 = a` (Chizat et al., "Scaling algorithms for unbalanced transport problems",
2018) the plan is `T = a b^T o exp(F + G - C / epsilon)`, its row sums are `a exp(-tau F)` with `tau = epsilon / rho`, and
a scaling over row sums s of the kernel is `(a / s)^(1 / (1 + tau))`, with the potential that the kernel already holds taken
off. `tau = 0` is the exact marginal.
*/

/// Row sums below this part of their mass count for nothing in Newton's equations.
const FADED: f64 = 1e-250;

/// Largest logarithm of one scaling: its exponential is neither 0 nor infinite, and the next step goes on from there.
const STEP_MAX: f64 = 600.0;

/// The marginal of one side, all masses above 0.
pub(crate) struct Side {
    /// `mass = scale share`: equal masses are then one number and compute as one.
    scale: f64,
    share: Vec<f64>,
    /// `1 / mass`.
    inverse: Vec<f64>,
    /// tau.
    pub(crate) softness: f64,
}

impl Side {
    /// Equal masses that sum to 1, kept exactly.
    pub(crate) fn even(length: usize) -> Self {
        Self {
            scale: 1.0 / length as f64,
            share: vec![1.0; length],
            inverse: vec![length as f64; length],
            softness: 0.0,
        }
    }

    /// These masses; `softness` is epsilon / rho.
    pub(crate) fn new(mass: Vec<f64>, softness: f64) -> Self {
        Self {
            scale: 1.0,
            inverse: mass.iter().map(|mass| 1.0 / mass).collect(),
            share: mass,
            softness,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.share.len()
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.softness == 0.0
    }

    pub(crate) fn mass(&self, i: usize) -> f64 {
        self.scale * self.share[i]
    }

    /// All masses.
    pub(crate) fn masses(&self) -> Vec<f64> {
        (0..self.len()).map(|i| self.mass(i)).collect()
    }

    /// The sum that the plan should have at i, where its logarithm of scaling is `log` (the mass's own included).
    pub(super) fn target(&self, i: usize, log: impl FnOnce() -> f64) -> f64 {
        let mass = self.mass(i);
        if self.is_exact() {
            return mass;
        }
        mass * (-self.softness * (log() - mass.ln())).exp()
    }

    /// The scaling that turns a sum of the kernel into [`Side::target`], where the kernel holds the scaling `log`.
    pub(super) fn scaling(&self, i: usize, sum: f64, log: impl FnOnce() -> f64) -> f64 {
        let mass = self.mass(i);
        if self.is_exact() {
            return mass / sum;
        }
        // Nothing that this position could give to: any scaling will do.
        if sum <= 0.0 {
            return 1.0;
        }
        let potential = log() - mass.ln();
        let log = ((mass / sum).ln() - self.softness * potential) / (1.0 + self.softness);
        log.clamp(-STEP_MAX, STEP_MAX).exp()
    }

    /// This side's part of the dual in units of epsilon, up to a constant where it is exact. `log(i)` is the logarithm of
    /// the whole scaling, `relative(i)` without what the kernel holds.
    pub(super) fn dual(&self, log: impl Fn(usize) -> f64, relative: impl Fn(usize) -> f64) -> f64 {
        if self.is_exact() {
            let sum: f64 = (0..self.len()).map(|i| self.share[i] * relative(i)).sum();
            return self.scale * sum;
        }
        let tau = self.softness;
        let term = |i: usize| {
            let mass = self.mass(i);
            -mass * (-tau * (log(i) - mass.ln())).exp_m1() / tau
        };
        (0..self.len()).map(term).sum()
    }

    /// `u^2 / ((1 + tau) r)`, r the plan's row sum: what a row weighs once it is eliminated from the dual's Hessian.
    pub(super) fn eliminated(&self, i: usize, log: impl FnOnce() -> f64) -> f64 {
        if self.is_exact() {
            return self.inverse[i];
        }
        let sum = self.target(i, log);
        if sum < FADED {
            return 0.0;
        }
        1.0 / ((1.0 + self.softness) * sum)
    }
}

/// Both sides.
pub(crate) struct Marginals {
    pub(crate) rows: Side,
    pub(crate) columns: Side,
}

impl Marginals {
    /// 1/n and 1/m, exactly.
    pub(crate) fn even(n: usize, m: usize) -> Self {
        Self {
            rows: Side::even(n),
            columns: Side::even(m),
        }
    }

    pub(crate) fn are_exact(&self) -> bool {
        self.rows.is_exact() && self.columns.is_exact()
    }

    /// The least mass of either side.
    pub(super) fn least(&self) -> f64 {
        let least = |side: &Side| (0..side.len()).map(|i| side.mass(i)).fold(1.0, f64::min);
        least(&self.rows).min(least(&self.columns))
    }
}
