/*! Provides the plans between the positions of two sequences: how much the student's position i learns from the
teacher's j, for a cost C `[N, M]` and masses a `[N]` and b `[M]` of the positions, each of sum 1.

```text
 sinkhorn     min <T,C> + epsilon sum T ln T          T 1 = a, T^T 1 = b
 unbalanced   min <T,C> + epsilon KL(T | a b^T) + rho_student KL(T 1 | a) + rho_teacher KL(T^T 1 | b)
 partial      min <T,C> + epsilon sum T ln T          T 1 <= a, T^T 1 <= b, sum T = mass
 row          min <T,C> + epsilon KL(T | a b^T)       T 1 = a:   T_ij = a_i softmax_j(ln b_j - C_ij / epsilon)
 mutual       softmax_j(ln b_j - C_ij / epsilon) softmax_i(ln a_i - C_ij / epsilon), divided by its sum
 monotone     expected cells of the paths from the first pair to the last, exp(-cost / epsilon) each, divided by their sum
 uniform      a b^T
 links        a_i shared evenly among the positions that the record joins with i
```

`KL(x | y) = sum x ln(x / y) - x + y`. `unbalanced` is POT's `sinkhorn_unbalanced` with `reg_type="kl"`, `partial` its
`entropic_partial_wasserstein`, `monotone` the gradient of soft-DTW (Cuturi and Blondel, 2017) over its sum. A position of
mass 0 is left out; which others there are is all that `monotone` takes from the masses, and that the teacher's has
any is all that `links` takes from b.

A solved plan gives the gradient of `<T(C), P>` in C for a fixed P, and, where it minimises something, that value.
*/

mod capped;
#[cfg(test)]
mod edge_tests;
mod entropic;
mod fixed;
mod monotone;
mod partial;
#[cfg(test)]
pub(super) mod reference;
mod softmax;
mod support;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use self::monotone::Lattice;
use self::softmax::Mutual;
use self::support::Support;
use super::config::POSITIONS_MAX;
use super::error::{LossError, Result};
use super::objective::{marginals, sharp_gradient};
use super::sinkhorn::Convergence;

/// Which plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlanKind {
    /// Entropic transport with both marginals kept.
    Sinkhorn,
    /// Entropic transport whose marginals are penalties.
    Unbalanced,
    /// Entropic transport of a part of the mass.
    Partial,
    /// The product of two attentions, one from each side.
    Mutual,
    /// Attention of the student's positions to the teacher's.
    Row,
    /// Everything to everything: the control that knows nothing.
    Uniform,
    /// The expected monotone alignment.
    Monotone,
    /// What the record joins.
    Links,
}

/// What a plan is made from.
#[derive(Clone, Copy)]
pub(crate) struct PlanProblem<'a> {
    /// `[N, M]`, row-major, priors included.
    pub(crate) cost: &'a [f32],
    /// `[N]`, of sum 1.
    pub(crate) a: &'a [f64],
    /// `[M]`, of sum 1.
    pub(crate) b: &'a [f64],
    /// For [`PlanKind::Links`].
    pub(crate) links: &'a [(u32, u32)],
}

/// How a plan is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PlanOptions {
    pub(crate) kind: PlanKind,
    /// In units of the cost.
    pub(crate) epsilon: f64,
    /// Of `unbalanced`, in units of the cost; infinite keeps the side's marginal.
    pub(crate) rho_student: f64,
    /// The same for the teacher's side.
    pub(crate) rho_teacher: f64,
    /// Of `partial`: what is transported, above 0 and at most 1.
    pub(crate) mass: f64,
    /// L1 error of the marginals at which solvers stop.
    pub(crate) tolerance: f64,
    /// Most passes over the kernel.
    pub(crate) max_iterations: usize,
}

/// What a plan minimises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entropic {
    /// The least value.
    pub(crate) value: f64,
    /// `weight T` is its gradient in C. 1 but for `monotone`, whose paths are not all of one length.
    pub(crate) weight: f64,
}

/// A plan, and how it depends on its cost.
pub(crate) struct SolvedPlan<'a> {
    support: Support,
    plan: Vec<f32>,
    row_mass: Vec<f64>,
    convergence: Convergence,
    entropic: Option<Entropic>,
    dependence: Dependence<'a>,
}

/// How a plan moves with its cost, on its support.
enum Dependence<'a> {
    /// Not at all.
    None,
    /// As the scalings of the marginals say; softness of the rows and of the columns.
    Scalings {
        epsilon: f64,
        softness: (f64, f64),
    },
    /// As the scalings of what is full; which rows and which columns are.
    Capped {
        epsilon: f64,
        full: (Vec<bool>, Vec<bool>),
    },
    /// As a softmax of every row.
    Row {
        epsilon: f64,
    },
    Mutual(Mutual<'a>),
    Monotone(Lattice),
}

/// A plan on its support, as the kinds make it.
struct Made<'a> {
    plan: Vec<f32>,
    convergence: Convergence,
    entropic: Option<Entropic>,
    dependence: Dependence<'a>,
}

/// What is left of a problem where both masses are above 0.
struct Supported<'a> {
    cost: Cow<'a, [f32]>,
    a: Vec<f64>,
    b: Vec<f64>,
}

/// Makes a plan.
///
/// # Errors
/// Costs that are not finite, masses that are none, shapes that do not fit, options without meaning. Not meeting the
/// tolerance is no error: [`SolvedPlan::convergence`] says so.
pub(crate) fn solve_plan<'a>(
    problem: PlanProblem<'a>,
    options: &PlanOptions,
) -> Result<SolvedPlan<'a>> {
    problem.check()?;
    options.check()?;
    let support = Support::new(problem.a, problem.b);
    let rest = Supported {
        cost: support.shrink(problem.cost),
        a: support.row_masses(problem.a),
        b: support.column_masses(problem.b),
    };
    let made = match options.kind {
        PlanKind::Uniform => Made::fixed(fixed::uniform(&rest)),
        PlanKind::Links => Made::fixed(fixed::links(&support, &rest, problem.links)?),
        PlanKind::Sinkhorn => entropic::sinkhorn(&rest, options)?,
        PlanKind::Unbalanced => entropic::unbalanced(&rest, options)?,
        PlanKind::Partial => partial::partial(&rest, options)?,
        PlanKind::Row => softmax::row(&rest, options.epsilon),
        PlanKind::Mutual => softmax::mutual(rest, options.epsilon),
        PlanKind::Monotone => monotone::monotone(&rest, options.epsilon)?,
    };
    Ok(SolvedPlan::new(support, made))
}

impl PlanProblem<'_> {
    fn check(&self) -> Result<()> {
        let (n, m) = (self.a.len(), self.b.len());
        if n == 0 || m == 0 || n.max(m) > POSITIONS_MAX {
            return Err(LossError::shape(
                "positions of a plan",
                format!("1..={POSITIONS_MAX} on either side"),
                format!("{n} of the student, {m} of the teacher"),
            ));
        }
        if self.cost.len() != n * m {
            return Err(LossError::shape(
                "costs of a plan",
                format!("{n} x {m}"),
                self.cost.len(),
            ));
        }
        if let Some(entry) = self.cost.iter().position(|cost| !cost.is_finite()) {
            return Err(LossError::NonFinite {
                what: "transport cost",
                position: entry / m,
            });
        }
        check_masses("masses of the student's positions", self.a)?;
        check_masses("masses of the teacher's positions", self.b)
    }
}

/// How far a sum of masses may be from 1.
const MASS_ERROR_MAX: f64 = 1e-6;

fn check_masses(what: &'static str, masses: &[f64]) -> Result<()> {
    let expected = "numbers of at least 0 that sum to 1";
    let is_none = |mass: &f64| mass.is_nan() || *mass < 0.0;
    if let Some(i) = masses.iter().position(is_none) {
        let found = format!("{} at position {i}", masses[i]);
        return Err(LossError::shape(what, expected, found));
    }
    let sum: f64 = masses.iter().sum();
    // An infinite mass is far from 1 as well.
    if (sum - 1.0).abs() > MASS_ERROR_MAX {
        return Err(LossError::shape(what, expected, format!("a sum of {sum}")));
    }
    Ok(())
}

impl PlanOptions {
    fn check(&self) -> Result<()> {
        let above_0 = |key, value: f64, infinite: bool| {
            if value > 0.0 && (infinite || value.is_finite()) {
                return Ok(());
            }
            let or = if infinite { ", or infinity" } else { "" };
            Err(LossError::Setting {
                key,
                reason: format!("{value} is not a number above 0{or}"),
            })
        };
        above_0("epsilon", self.epsilon, false)?;
        above_0("tolerance", self.tolerance, false)?;
        if self.kind == PlanKind::Unbalanced {
            above_0("rho_student", self.rho_student, true)?;
            above_0("rho_teacher", self.rho_teacher, true)?;
        }
        if self.kind == PlanKind::Partial && !(self.mass > 0.0 && self.mass <= 1.0) {
            return Err(LossError::Setting {
                key: "mass",
                reason: format!("{} is not above 0 and at most 1", self.mass),
            });
        }
        if self.max_iterations == 0 {
            return Err(LossError::Setting {
                key: "max_iterations",
                reason: "must be at least 1".into(),
            });
        }
        Ok(())
    }
}

impl Made<'_> {
    /// A plan that does not depend on costs.
    fn fixed(plan: Vec<f32>) -> Self {
        Self {
            plan,
            convergence: Convergence::default(),
            entropic: None,
            dependence: Dependence::None,
        }
    }
}

impl<'a> SolvedPlan<'a> {
    fn new(support: Support, made: Made<'a>) -> Self {
        let plan = support.spread(made.plan);
        let (n, m) = support.size();
        let (row_mass, _) = marginals(plan.iter().map(|&t| f64::from(t)), n, m);
        Self {
            support,
            plan,
            row_mass,
            convergence: made.convergence,
            entropic: made.entropic,
            dependence: made.dependence,
        }
    }

    /// T `[N, M]`, row-major.
    pub(crate) fn plan(&self) -> &[f32] {
        &self.plan
    }

    /// Row sums of T.
    pub(crate) fn row_mass(&self) -> &[f64] {
        &self.row_mass
    }

    /// Column sums of T.
    #[cfg(test)]
    pub(crate) fn column_mass(&self) -> Vec<f64> {
        let (n, m) = self.support.size();
        marginals(self.plan.iter().map(|&t| f64::from(t)), n, m).1
    }

    /// How it was found; of a plan without a solver, that of no problem.
    pub(crate) fn convergence(&self) -> Convergence {
        self.convergence
    }

    /// Whether T is 0 everywhere: the record joins nothing, or all costs are far above what marginals are worth.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.plan.iter().all(|&t| t == 0.0)
    }

    /// What T minimises, if it does: its value and its exact gradient in C.
    pub(crate) fn entropic_value(&self) -> Option<Entropic> {
        self.entropic
    }

    /// The gradient of `<T(C), paid>` in C for a fixed `paid` `[N, M]`, exact, and whether the equations behind it were
    /// solved. Where the costs that are paid are C itself, the whole gradient of `<T(C), C>` is this and T.
    pub(crate) fn pull_back(&self, paid: &[f32]) -> (Vec<f32>, bool) {
        let plan = self.support.shrink(&self.plan);
        let paid = self.support.shrink(paid);
        let size = self.support.inner_size();
        let (gradient, solved) = match &self.dependence {
            Dependence::None => return (vec![0.0; self.plan.len()], true),
            Dependence::Scalings { epsilon, softness } => {
                sharp_gradient(&paid, plan.into_owned(), size, (*epsilon, *softness))
            }
            Dependence::Capped { epsilon, full } => capped::pull_back(&plan, &paid, full, *epsilon),
            Dependence::Row { epsilon } => {
                let gradient = softmax::row_pull_back(plan.into_owned(), &paid, size.1, *epsilon);
                (gradient, true)
            }
            Dependence::Mutual(mutual) => (mutual.pull_back(&plan, &paid), true),
            Dependence::Monotone(lattice) => (lattice.pull_back(&plan, &paid), true),
        };
        (self.support.spread(gradient), solved)
    }
}
