//! Provides the plans of the scaling solver: balanced and unbalanced transport.

use super::{Dependence, Entropic, Made, PlanOptions, Supported};
use crate::loss::error::Result;
use crate::loss::sinkhorn::{Marginals, Side, Solution, SolverOptions, solve_between};

/// Both marginals kept.
pub(super) fn sinkhorn<'a>(problem: &Supported, options: &PlanOptions) -> Result<Made<'a>> {
    let solution = solve(problem, options, (0.0, 0.0))?;
    let value = weighted(&solution.row_mass, &solution.row_potential)
        + weighted(&solution.column_mass, &solution.column_potential);
    Ok(made(solution, value, options, (0.0, 0.0)))
}

/// Marginals as penalties. The value is the dual's, which is flat where the plan is solved.
pub(super) fn unbalanced<'a>(problem: &Supported, options: &PlanOptions) -> Result<Made<'a>> {
    let rho = (options.rho_student, options.rho_teacher);
    let softness = (options.epsilon / rho.0, options.epsilon / rho.1);
    let solution = solve(problem, options, softness)?;
    let transported: f64 = solution.row_mass.iter().sum();
    let value = penalty(&problem.a, &solution.row_potential, rho.0, options.epsilon)
        + penalty(
            &problem.b,
            &solution.column_potential,
            rho.1,
            options.epsilon,
        )
        - options.epsilon * (transported - 1.0);
    Ok(made(solution, value, options, softness))
}

fn solve(problem: &Supported, options: &PlanOptions, softness: (f64, f64)) -> Result<Solution> {
    let marginals = Marginals {
        rows: side(&problem.a, softness.0),
        columns: side(&problem.b, softness.1),
    };
    let options = SolverOptions {
        epsilon: options.epsilon,
        tolerance: options.tolerance,
        max_iterations: options.max_iterations,
        newton: true,
    };
    solve_between(&problem.cost, &marginals, &options)
}

fn side(masses: &[f64], softness: f64) -> Side {
    let even = masses.iter().all(|&mass| mass == masses[0]);
    if even && softness == 0.0 {
        return Side::even(masses.len());
    }
    Side::new(masses.to_vec(), softness)
}

fn made<'a>(
    solution: Solution,
    value: f64,
    options: &PlanOptions,
    softness: (f64, f64),
) -> Made<'a> {
    Made {
        plan: solution.plan,
        convergence: solution.convergence,
        entropic: Some(Entropic { value, weight: 1.0 }),
        dependence: Dependence::Scalings {
            epsilon: options.epsilon,
            softness,
        },
    }
}

/// One side of the dual, `-rho sum a (exp(-f / rho) - 1)`, or `<a, f>` of an exact marginal. The solver's potentials are
/// those of `T = exp((f + g - C) / epsilon)`; those of `T = a b^T o exp(..)` are lower by `epsilon ln a`.
fn penalty(masses: &[f64], potentials: &[f64], rho: f64, epsilon: f64) -> f64 {
    let term = |(&mass, potential): (&f64, &f64)| {
        let f = potential - epsilon * mass.ln();
        if rho.is_infinite() {
            mass * f
        } else {
            -rho * mass * (-f / rho).exp_m1()
        }
    };
    masses.iter().zip(potentials).map(term).sum()
}

fn weighted(masses: &[f64], potentials: &[f64]) -> f64 {
    masses.iter().zip(potentials).map(|(m, p)| m * p).sum()
}
