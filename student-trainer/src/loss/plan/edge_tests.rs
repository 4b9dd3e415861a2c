//! What lies at the edges of plans: masses and costs that are none, sizes, limits, threads.

use super::*;
use crate::loss::sinkhorn::{SolverOptions, solve};
use crate::loss::testing::{Random, matching};

const KINDS: [PlanKind; 8] = [
    PlanKind::Sinkhorn,
    PlanKind::Unbalanced,
    PlanKind::Partial,
    PlanKind::Mutual,
    PlanKind::Row,
    PlanKind::Uniform,
    PlanKind::Monotone,
    PlanKind::Links,
];

fn options(kind: PlanKind) -> PlanOptions {
    PlanOptions {
        kind,
        epsilon: 0.05,
        rho_student: 0.3,
        rho_teacher: 0.7,
        mass: 0.6,
        tolerance: 1e-6,
        max_iterations: 2_000,
    }
}

fn even(length: usize) -> Vec<f64> {
    vec![1.0 / length as f64; length]
}

fn costs(n: usize, m: usize, scale: f32) -> Vec<f32> {
    let mut random = Random::new(3);
    (0..n * m)
        .map(|_| scale * random.uniform() as f32)
        .collect()
}

/// A plan between equal masses.
fn between<T>(
    (n, m): (usize, usize),
    cost: &[f32],
    options: &PlanOptions,
    look: impl FnOnce(SolvedPlan) -> T,
) -> Result<T> {
    let (a, b) = (even(n), even(m));
    let links = [(0, 0), (n as u32 - 1, m as u32 - 1)];
    let problem = PlanProblem {
        cost,
        a: &a,
        b: &b,
        links: &links,
    };
    solve_plan(problem, options).map(look)
}

fn sum(plan: &SolvedPlan) -> f64 {
    plan.row_mass().iter().sum()
}

#[test]
fn equal_masses_give_the_plan_of_transport_to_the_last_bit() {
    for (n, m) in [(49, 30), (150, 140)] {
        let cost = matching(n, m, &mut Random::new(5));
        let given = options(PlanKind::Sinkhorn);
        let solver = SolverOptions {
            epsilon: given.epsilon,
            tolerance: given.tolerance,
            max_iterations: given.max_iterations,
            newton: true,
        };
        let expected = solve(&cost, n, m, &solver).unwrap();
        between((n, m), &cost, &given, |plan| {
            assert_eq!(plan.plan(), expected.plan);
            assert_eq!(plan.convergence(), expected.convergence);
        })
        .unwrap();
    }
}

#[test]
fn costs_and_masses_that_are_none_are_refused() {
    for kind in KINDS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut cost = costs(5, 4, 1.0);
            cost[13] = bad;
            let error = between((5, 4), &cost, &options(kind), |_| ()).unwrap_err();
            assert!(
                matches!(error, LossError::NonFinite { position: 3, .. }),
                "{error}"
            );
        }
        let cost = costs(2, 2, 1.0);
        for bad in [[0.5, 0.4], [1.5, -0.5], [f64::NAN, 1.0], [0.0, 0.0]] {
            for (a, b) in [(bad, [0.5, 0.5]), ([0.5, 0.5], bad)] {
                let problem = PlanProblem {
                    cost: &cost,
                    a: &a,
                    b: &b,
                    links: &[],
                };
                assert!(solve_plan(problem, &options(kind)).is_err(), "{a:?} {b:?}");
            }
        }
        assert!(between((2, 3), &cost, &options(kind), |_| ()).is_err());
    }
}

#[test]
fn settings_without_meaning_are_refused_by_their_name() {
    let given = options(PlanKind::Unbalanced);
    let partial = options(PlanKind::Partial);
    for (bad, name) in [
        (
            PlanOptions {
                epsilon: 0.0,
                ..given
            },
            "epsilon",
        ),
        (
            PlanOptions {
                epsilon: f64::INFINITY,
                ..given
            },
            "epsilon",
        ),
        (
            PlanOptions {
                tolerance: f64::NAN,
                ..given
            },
            "tolerance",
        ),
        (
            PlanOptions {
                rho_student: 0.0,
                ..given
            },
            "rho_student",
        ),
        (
            PlanOptions {
                rho_teacher: f64::NAN,
                ..given
            },
            "rho_teacher",
        ),
        (
            PlanOptions {
                max_iterations: 0,
                ..given
            },
            "max_iterations",
        ),
        (
            PlanOptions {
                mass: 0.0,
                ..partial
            },
            "mass",
        ),
        (
            PlanOptions {
                mass: 1.1,
                ..partial
            },
            "mass",
        ),
    ] {
        let error = between((2, 2), &costs(2, 2, 1.0), &bad, |_| ()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_plan_that_does_not_converge_says_so() {
    let cost = matching(40, 40, &mut Random::new(5));
    for kind in [PlanKind::Sinkhorn, PlanKind::Unbalanced, PlanKind::Partial] {
        let limited = PlanOptions {
            epsilon: 0.02,
            tolerance: 1e-9,
            max_iterations: 3,
            ..options(kind)
        };
        between((40, 40), &cost, &limited, |plan| {
            let found = plan.convergence();
            assert!(
                !found.converged && found.iterations <= 3,
                "{kind:?}: {found:?}"
            );
            assert!(found.marginal_error > 1e-9 && plan.plan().iter().all(|t| t.is_finite()));
        })
        .unwrap();
    }
}

#[test]
fn newton_finishes_what_turns_do_slowly() {
    let cost = matching(96, 80, &mut Random::new(3));
    for kind in [PlanKind::Unbalanced, PlanKind::Partial] {
        let exact = PlanOptions {
            tolerance: 1e-10,
            rho_student: 100.0,
            rho_teacher: 100.0,
            mass: 0.95,
            ..options(kind)
        };
        between((96, 80), &cost, &exact, |plan| {
            let found = plan.convergence();
            assert!(
                found.converged && found.newton_steps > 0,
                "{kind:?}: {found:?}"
            );
            assert!(found.iterations < 700, "{kind:?}: {found:?}");
        })
        .unwrap();
    }
}

#[test]
fn costs_of_every_size_leave_finite_plans_and_gradients() {
    for scale in [1e-30_f32, 1e-3, 1.0, 30.0, 1e3, 1e5] {
        for size in [(12, 9), (1, 7), (7, 1), (1, 1), (60, 40)] {
            let cost = costs(size.0, size.1, scale);
            for kind in KINDS {
                for epsilon in [1e-3, 0.1] {
                    let given = PlanOptions {
                        epsilon,
                        ..options(kind)
                    };
                    between(size, &cost, &given, |plan| {
                        let what = format!("{kind:?} {size:?} {scale} {epsilon}");
                        let sum = sum(&plan);
                        let whole = match kind {
                            PlanKind::Unbalanced | PlanKind::Links => {
                                (0.0..=1.0 + 1e-6).contains(&sum)
                            }
                            // At 1e8 epsilons from one row to the next it may not be done, and says so.
                            PlanKind::Partial => {
                                let off = (sum - given.mass).abs();
                                off < 1e-5 || !plan.convergence().converged && scale >= 1e3
                            }
                            _ => (sum - 1.0).abs() < 1e-5,
                        };
                        assert!(whole, "{what}: {sum}");
                        let value = plan.entropic_value();
                        assert!(
                            value.is_none_or(|found| found.value.is_finite()),
                            "{what}: {value:?} {:?}",
                            plan.convergence()
                        );
                        let (gradient, _) = plan.pull_back(&cost);
                        assert!(gradient.iter().all(|g| g.is_finite()), "{what}");
                    })
                    .unwrap();
                }
            }
        }
    }
}

#[test]
fn costs_far_above_what_marginals_are_worth_leave_an_empty_plan() {
    let cost: Vec<f32> = costs(12, 9, 1.0).iter().map(|cost| cost + 1e4).collect();
    let one_sided = |rho_student, rho_teacher| PlanOptions {
        rho_student,
        rho_teacher,
        ..options(PlanKind::Unbalanced)
    };
    let mass = |options: PlanOptions| {
        between((12, 9), &cost, &options, |plan| {
            assert!(plan.convergence().converged, "{:?}", plan.convergence());
            (sum(&plan), plan.is_empty())
        })
        .unwrap()
    };
    assert_eq!(mass(one_sided(0.3, 0.3)), (0.0, true));
    // A side that is exact moves all of its mass whatever it costs.
    for (rho_student, rho_teacher) in [(f64::INFINITY, 0.3), (0.3, f64::INFINITY)] {
        let (sum, empty) = mass(one_sided(rho_student, rho_teacher));
        assert!(!empty && (sum - 1.0).abs() < 1e-5, "{sum}");
    }
}

#[test]
fn sequences_of_every_length_are_solved() {
    for (n, m) in [(4096, 40), (40, 4096), (1, 4096), (16_384, 3)] {
        let cost = costs(n, m, 1.0);
        for kind in KINDS {
            let given = PlanOptions {
                epsilon: 0.2,
                ..options(kind)
            };
            between((n, m), &cost, &given, |plan| {
                assert!(plan.convergence().converged, "{kind:?} {n} {m}");
                let (gradient, solved) = plan.pull_back(&cost);
                assert!(solved && gradient.len() == n * m, "{kind:?} {n} {m}");
            })
            .unwrap();
        }
    }
}

#[test]
fn more_positions_than_a_plan_can_hold_are_refused_with_the_limit() {
    let (n, m) = (16_384, 1025);
    let cost = vec![0.0; n * m];
    let error = between((n, m), &cost, &options(PlanKind::Monotone), |_| ()).unwrap_err();
    assert!(error.to_string().contains("16777216 pairs"), "{error}");
    let error = between(
        (16_385, 1),
        &cost[..16_385],
        &options(PlanKind::Row),
        |_| (),
    )
    .unwrap_err();
    assert!(error.to_string().contains("16384"), "{error}");
}

#[test]
fn a_record_without_links_gives_an_empty_plan() {
    let (cost, a, b) = (costs(3, 2, 1.0), even(3), [1.0, 0.0]);
    let plan = |links: &[(u32, u32)]| {
        let problem = PlanProblem {
            cost: &cost,
            a: &a,
            b: &b,
            links,
        };
        solve_plan(problem, &options(PlanKind::Links))
            .map(|plan| (plan.is_empty(), plan.plan().to_vec()))
    };
    // The teacher's second position carries nothing.
    for none in [&[][..], &[(1, 1)]] {
        assert_eq!(plan(none).unwrap(), (true, vec![0.0; 6]));
    }
    let third = 1.0 / 3.0;
    assert_eq!(
        plan(&[(1, 0), (1, 1)]).unwrap(),
        (false, vec![0.0, 0.0, third, 0.0, 0.0, 0.0])
    );
    let error = plan(&[(1, 2)]).unwrap_err().to_string();
    assert!(error.contains("(1, 2)"), "{error}");
}

#[test]
fn plans_do_not_depend_on_the_number_of_threads() {
    let cost = matching(400, 350, &mut Random::new(7));
    for kind in KINDS {
        let with_threads = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let look = |plan: SolvedPlan| (plan.plan().to_vec(), plan.pull_back(&cost).0);
            pool.install(|| between((400, 350), &cost, &options(kind), look).unwrap())
        };
        assert_eq!(with_threads(1), with_threads(2), "{kind:?}");
    }
}

#[test]
fn kinds_have_the_names_of_the_settings() {
    let names = serde_json::to_string(&KINDS).unwrap();
    assert_eq!(
        names,
        r#"["sinkhorn","unbalanced","partial","mutual","row","uniform","monotone","links"]"#
    );
}
