//! Plans against the slow reference; gradients against its central differences; and what lies at the edges.

use super::reference::{self, Problem};
use super::*;
use crate::loss::reference::{Matrix, central_differences};
use crate::loss::testing::{Random, relative};

/// A problem that both sides start from: numbers that f32 holds.
fn problem(n: usize, m: usize, seed: u64) -> Problem {
    let mut random = Random::new(seed);
    Problem {
        cost: uniform(n, m, &mut random),
        a: masses(n, &mut random),
        b: masses(m, &mut random),
        links: vec![(0, 0), (n as u32 - 1, m as u32 - 1), (0, m as u32 - 1)],
    }
}

fn uniform(rows: usize, columns: usize, random: &mut Random) -> Matrix {
    let data = (0..rows * columns).map(|_| f64::from(random.uniform() as f32));
    Matrix {
        rows,
        columns,
        data: data.collect(),
    }
}

/// Masses that differ by a factor of five.
fn masses(length: usize, random: &mut Random) -> Vec<f64> {
    let raw: Vec<f64> = (0..length).map(|_| 0.25 + random.uniform()).collect();
    let sum: f64 = raw.iter().sum();
    raw.iter().map(|mass| mass / sum).collect()
}

fn options(kind: PlanKind, epsilon: f64) -> PlanOptions {
    PlanOptions {
        kind,
        epsilon,
        rho_student: 0.3,
        rho_teacher: 0.7,
        mass: 0.6,
        tolerance: 1e-11,
        max_iterations: 20_000,
    }
}

fn narrow(matrix: &Matrix) -> Vec<f32> {
    matrix.data.iter().map(|&x| x as f32).collect()
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Solves a problem and hands the plan to `look`.
#[track_caller]
fn solved<T>(problem: &Problem, options: &PlanOptions, look: impl FnOnce(&SolvedPlan) -> T) -> T {
    let cost = narrow(&problem.cost);
    let given = PlanProblem {
        cost: &cost,
        a: &problem.a,
        b: &problem.b,
        links: &problem.links,
    };
    let plan = solve_plan(given, options).unwrap();
    assert!(
        plan.convergence().converged,
        "{options:?}: {:?}",
        plan.convergence()
    );
    look(&plan)
}

const KINDS: [PlanKind; 8] = [
    PlanKind::Monotone,
    PlanKind::Partial,
    PlanKind::Sinkhorn,
    PlanKind::Unbalanced,
    PlanKind::Mutual,
    PlanKind::Row,
    PlanKind::Uniform,
    PlanKind::Links,
];

/// Every kind, and the corners of those with settings of their own.
fn all_options(epsilon: f64) -> Vec<PlanOptions> {
    let mut all: Vec<PlanOptions> = KINDS.map(|kind| options(kind, epsilon)).to_vec();
    let unbalanced = options(PlanKind::Unbalanced, epsilon);
    for (rho_student, rho_teacher) in [
        (f64::INFINITY, 0.2),
        (0.2, f64::INFINITY),
        (f64::INFINITY, f64::INFINITY),
        (50.0, 1e4),
        (0.01, 0.01),
    ] {
        all.push(PlanOptions {
            rho_student,
            rho_teacher,
            ..unbalanced
        });
    }
    for mass in [0.1, 0.9, 1.0] {
        all.push(PlanOptions {
            mass,
            ..options(PlanKind::Partial, epsilon)
        });
    }
    all
}

/// Those for which the slow reference takes no thousands of rounds: differences ask for it often.
fn quick_options(epsilon: f64) -> Vec<PlanOptions> {
    let mut all = all_options(epsilon);
    all.retain(|options| options.rho_student.min(options.rho_teacher) < 50.0);
    all
}

/// Shapes with every mass above 0, and with some at 0.
fn problems() -> Vec<Problem> {
    let mut problems: Vec<Problem> = [(1, 1), (1, 5), (5, 1), (4, 4), (6, 4), (4, 7)]
        .into_iter()
        .zip(1..)
        .map(|((n, m), seed)| problem(n, m, seed))
        .collect();
    let mut left_out = problem(6, 5, 9);
    for masses in [&mut left_out.a, &mut left_out.b] {
        masses[2] = 0.0;
        let sum: f64 = masses.iter().sum();
        masses.iter_mut().for_each(|mass| *mass /= sum);
    }
    left_out.links.extend([(1, 2), (1, 3), (2, 1), (1, 3)]);
    problems.push(left_out);
    problems
}

#[test]
fn plans_agree_with_the_slow_reference() {
    for problem in problems() {
        for options in [0.05, 0.5].into_iter().flat_map(all_options) {
            let expected = reference::plan(&problem, &options);
            let (rows, columns) = reference::marginals(&expected);
            solved(&problem, &options, |plan| {
                // f32 keeps a plan to 6e-8 of each entry.
                let distance = relative(&widen(plan.plan()), &expected.data);
                assert!(distance < 1e-6, "{options:?}: {distance:e}");
                assert!(relative(plan.row_mass(), &rows) < 1e-6, "{options:?}");
                assert!(
                    relative(&plan.column_mass(), &columns) < 1e-6,
                    "{options:?}"
                );
            });
        }
    }
}

#[test]
fn values_agree_and_their_gradient_is_the_plan() {
    for problem in problems() {
        for options in quick_options(0.2) {
            solved(&problem, &options, |plan| {
                let Some(Entropic { value, weight }) = plan.entropic_value() else {
                    assert!(matches!(
                        options.kind,
                        PlanKind::Mutual | PlanKind::Uniform | PlanKind::Links
                    ));
                    return;
                };
                let expected = reference::value(&problem, &options);
                assert!(
                    (value - expected).abs() < 1e-7,
                    "{options:?}: {value} for {expected}"
                );
                let at = |cost: &Matrix| reference::value(&with_cost(&problem, cost), &options);
                let gradient = central_differences(&problem.cost, 1e-4, at);
                let plan: Vec<f64> = plan.plan().iter().map(|&t| weight * f64::from(t)).collect();
                // Differences leave 1e-8, of values that f64 holds to 1e-16 over a step of 1e-4 and of its square.
                assert!(relative(&plan, &gradient.data) < 1e-5, "{options:?}");
            });
        }
    }
}

fn with_cost(problem: &Problem, cost: &Matrix) -> Problem {
    Problem {
        cost: cost.clone(),
        a: problem.a.clone(),
        b: problem.b.clone(),
        links: problem.links.clone(),
    }
}

#[test]
fn pulling_back_is_the_gradient_of_what_is_paid() {
    for (problem, seed) in problems().into_iter().zip(100..) {
        let (n, m) = (problem.cost.rows, problem.cost.columns);
        let paid = uniform(n, m, &mut Random::new(seed));
        for options in quick_options(0.2) {
            let at = |cost: &Matrix| -> f64 {
                let plan = reference::plan(&with_cost(&problem, cost), &options);
                plan.data.iter().zip(&paid.data).map(|(t, p)| t * p).sum()
            };
            let expected = central_differences(&problem.cost, 1e-4, at);
            let size = expected.data.iter().map(|x| x * x).sum::<f64>().sqrt();
            solved(&problem, &options, |plan| {
                let (gradient, converged) = plan.pull_back(&narrow(&paid));
                assert!(converged, "{options:?}");
                let distance = widen(&gradient).into_iter().zip(&expected.data);
                let distance = distance.map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
                // A plan in f32, and differences of plans that are iterated to 1e-13.
                assert!(
                    distance < 2e-5 * size + 1e-7,
                    "{options:?}: {distance:e} of {size:e}"
                );
            });
        }
    }
}
