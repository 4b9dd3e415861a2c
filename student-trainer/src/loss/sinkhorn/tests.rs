//! The solver against the log-domain reference, Newton against Sinkhorn, and costs of every size.

use super::*;
use crate::loss::reference::{self, Matrix};
use crate::loss::testing::{self, Random, relative};

fn options(epsilon: f64, tolerance: f64) -> SolverOptions {
    SolverOptions {
        epsilon,
        tolerance,
        max_iterations: 5_000,
        newton: true,
    }
}

fn matching(n: usize, m: usize, seed: u64) -> Vec<f32> {
    testing::matching(n, m, &mut Random::new(seed))
}

fn uniform(n: usize, m: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n * m).map(|_| random.uniform() as f32).collect()
}

#[test]
fn plans_agree_with_the_log_domain_reference() {
    for (n, m, epsilon) in [
        (7, 5, 0.1),
        (20, 33, 0.05),
        (1, 4, 0.1),
        (4, 1, 0.1),
        (130, 140, 0.1),
    ] {
        for cost in [uniform(n, m, 1), matching(n, m, 2)] {
            let solution = solve(&cost, n, m, &options(epsilon, 1e-6)).unwrap();
            assert!(solution.convergence.converged);
            assert!(
                solution.convergence.marginal_error <= 1.1e-6,
                "{}",
                solution.convergence.marginal_error
            );
            let dense = Matrix::from_fn(n, m, |i, j| f64::from(cost[i * m + j]));
            let expected = reference::sinkhorn(&dense, epsilon);
            let plan: Vec<f64> = solution.plan.iter().map(|&t| f64::from(t)).collect();
            // A marginal error of 1e-6 leaves the potentials of a badly conditioned plan this uncertain.
            assert!(relative(&plan, &expected.data) < 5e-5, "{n} {m} {epsilon}");
        }
    }
}

#[test]
fn newton_and_sinkhorn_find_the_same_plan_and_newton_sooner() {
    let (n, m) = (96, 80);
    let cost = matching(n, m, 3);
    let newton = solve(&cost, n, m, &options(0.05, 1e-9)).unwrap();
    let plain = SolverOptions {
        newton: false,
        max_iterations: 100_000,
        ..options(0.05, 1e-9)
    };
    let sinkhorn = solve(&cost, n, m, &plain).unwrap();
    assert!(newton.convergence.converged && sinkhorn.convergence.converged);
    assert!(
        newton.convergence.newton_steps > 0
            && newton.convergence.iterations < sinkhorn.convergence.iterations
    );
    let widen = |s: &Solution| s.plan.iter().map(|&t| f64::from(t)).collect::<Vec<_>>();
    assert!(relative(&widen(&newton), &widen(&sinkhorn)) < 1e-6);
}

#[test]
fn tiny_and_huge_costs_over_epsilon_are_solved() {
    for scale in [1e-30_f32, 1e-3, 30.0, 1e3, 1e5] {
        for (n, m) in [(12, 9), (150, 120)] {
            let cost: Vec<f32> = uniform(n, m, 4).iter().map(|c| c * scale).collect();
            let solution = solve(&cost, n, m, &options(0.1, 1e-6)).unwrap();
            assert!(solution.plan.iter().all(|t| t.is_finite()));
            for mass in &solution.row_mass {
                assert!((mass * n as f64 - 1.0).abs() < 1e-5, "{scale}: {mass}");
            }
            // Beyond this the problem is an assignment, and entropic solvers need more steps than the limit.
            assert!(
                solution.convergence.converged || scale >= 1e3,
                "{scale} {n}: {solution:?}"
            );
        }
    }
}

#[test]
fn a_limit_is_kept_and_reported() {
    let limited = SolverOptions {
        max_iterations: 3,
        ..options(0.02, 1e-9)
    };
    let solution = solve(&matching(40, 40, 5), 40, 40, &limited).unwrap();
    assert!(
        !solution.convergence.converged
            && solution.convergence.iterations <= 3
            && solution.convergence.marginal_error > 1e-9
    );
}

#[test]
fn nan_infinity_and_wrong_lengths_are_errors() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut cost = uniform(5, 4, 6);
        cost[13] = bad;
        let error = solve(&cost, 5, 4, &options(0.1, 1e-6)).unwrap_err();
        assert!(
            matches!(error, LossError::NonFinite { position: 3, .. }),
            "{error}"
        );
    }
    assert!(solve(&[], 0, 0, &options(0.1, 1e-6)).is_err());
    assert!(solve(&[1.0; 5], 2, 3, &options(0.1, 1e-6)).is_err());
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (n, m) = (400, 500);
    let cost = matching(n, m, 7);
    let with_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| solve(&cost, n, m, &options(0.1, 1e-6)).unwrap())
    };
    assert_eq!(with_threads(1).plan, with_threads(2).plan);
}
