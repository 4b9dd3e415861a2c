//! Provides the tests of the transport kernel, run by the emulator, against the host's solver: plans, potentials, values, and where it ends.

use candle_core::{DType, Device, Tensor};
use distill_kernels::sinkhorn::{Ending, Found, Launcher, Problems, Solving};
use distill_kernels::{Emulator, SINKHORN};

use super::sinkhorn::{Solution, SolverOptions, solve};
use super::testing::{Random, emulate, matching, relative};

pub(super) const EMULATED: Launcher = Launcher {
    compute: |inputs, outputs, calls| emulate(&SINKHORN, inputs, outputs, calls),
    change: |changed, inputs, calls| Emulator::of(&SINKHORN)?.change(changed, inputs, calls),
};

/// One problem among others: costs `[n, m]` and masses.
#[derive(Clone)]
pub(super) struct Given {
    cost: Vec<f32>,
    a: Vec<f64>,
    b: Vec<f64>,
}

impl Given {
    pub(super) fn uniform(cost: Vec<f32>, n: usize, m: usize) -> Self {
        Self {
            cost,
            a: vec![1.0 / n as f64; n],
            b: vec![1.0 / m as f64; m],
        }
    }
}

/// Plans and what was found, of problems of one size; `<T,C>` is of the same cost.
pub(super) fn by_kernel(given: &[Given], how: Solving) -> (Vec<Vec<f32>>, Vec<Found>) {
    let (n, m) = (given[0].a.len(), given[0].b.len());
    let problems = Problems {
        count: given.len(),
        n,
        m,
    };
    let cost: Vec<f32> = given.iter().flat_map(|g| g.cost.clone()).collect();
    let masses = given.iter().flat_map(|g| g.a.iter().chain(&g.b));
    let masses: Vec<f64> = masses.copied().collect();
    let cost = Tensor::from_vec(cost, (given.len(), n, m), &Device::Cpu).unwrap();
    let masses = Tensor::from_vec(masses, (given.len(), n + m), &Device::Cpu).unwrap();
    let made = problems.plans(&EMULATED, (&cost, &cost), &masses, &how);
    let (plans, found) = made.unwrap();
    assert_eq!(plans.dtype(), DType::F32);
    let plans: Vec<f32> = plans.flatten_all().unwrap().to_vec1().unwrap();
    let plans = plans.chunks(n * m).map(<[f32]>::to_vec).collect();
    (plans, found)
}

fn by_host(cost: &[f32], n: usize, m: usize, how: Solving) -> Solution {
    let options = SolverOptions {
        epsilon: how.epsilon.into(),
        tolerance: how.tolerance.into(),
        max_iterations: how.passes_max,
        newton: true,
    };
    solve(cost, n, m, &options).unwrap()
}

/// At most 5000 passes.
pub(super) fn how(epsilon: f32, tolerance: f32) -> Solving {
    Solving {
        epsilon,
        tolerance,
        passes_max: 5_000,
    }
}

pub(super) fn wide(plan: &[f32]) -> Vec<f64> {
    plan.iter().map(|&t| f64::from(t)).collect()
}

/// Potentials are equal up to a constant that one side gains and the other loses.
fn potentials_agree(found: &Found, host: &Solution, tolerance: f64) -> bool {
    let shift = host.row_potential[0] - found.row_potential[0];
    let rows = found.row_potential.iter().zip(&host.row_potential);
    let columns = found.column_potential.iter().zip(&host.column_potential);
    let rows = rows.map(|(f, of_host)| f + shift - of_host);
    let mut apart = rows.chain(columns.map(|(g, of_host)| g - shift - of_host));
    apart.all(|apart| apart.abs() <= tolerance)
}

/// `exp((f + g - C) / epsilon)`.
fn implied(found: &Found, cost: &[f32], epsilon: f32) -> Vec<f64> {
    let (f, g) = (&found.row_potential, &found.column_potential);
    let entry = |(k, &c): (usize, &f32)| {
        let (i, j) = (k / g.len(), k % g.len());
        ((f[i] + g[j] - f64::from(c)) / f64::from(epsilon)).exp()
    };
    cost.iter().enumerate().map(entry).collect()
}

pub(super) fn costs(n: usize, m: usize, seed: u64) -> [Vec<f32>; 3] {
    let mut random = Random::new(seed);
    let flat = (0..n * m).map(|_| random.uniform() as f32).collect();
    let matching = matching(n, m, &mut random);
    // With a strong position prior, as `kl` costs have by default.
    let place = |k: usize, of: usize| k as f32 / of as f32;
    let prior = |(k, c): (usize, &f32)| {
        let (i, j) = (k / m, k % m);
        1.5 + c + 100.0 * (place(i, n) - place(j, m)).powi(2)
    };
    let prior = matching.iter().enumerate().map(prior).collect();
    [flat, matching, prior]
}

#[test]
fn plans_potentials_and_values_are_the_host_s() {
    for (n, m) in [
        (1, 1),
        (1, 5),
        (5, 1),
        (7, 7),
        (33, 33),
        (64, 64),
        (128, 128),
        (20, 75),
        (75, 20),
    ] {
        // The emulator takes its time: the last kind needs hundreds of passes.
        let kinds = if n * m > 1_600 { 2 } else { 3 };
        for (k, cost) in costs(n, m, 51).into_iter().take(kinds).enumerate() {
            // Passes in f32, then in f64 from the start.
            for tolerance in [1e-6, 1e-9] {
                let how = how(0.1, tolerance);
                let host = by_host(&cost, n, m, how);
                let (plans, found) = by_kernel(&[Given::uniform(cost.clone(), n, m)], how);
                let found = &found[0];
                let name = format!("{n} x {m}, cost {k}, tolerance {tolerance:e}");
                assert_eq!(found.ending, Ending::Solved, "{name}");
                assert!(host.convergence.converged, "{name}");
                assert!(found.error <= tolerance.into(), "{name}: {}", found.error);
                // Entries are stored in f32.
                let stored = f64::from(tolerance) + 2e-7;
                assert!(found.marginal_error <= stored, "{name}: {found:?}");
                // Mass goes from end to end of the hardest in (n / width)^2 = 1000 exchanges: so much further may both be from the
                // plan than from its sums. And entries are f32.
                let close = 1e3 * f64::from(tolerance) + 1e-6;
                let distance = relative(&wide(&plans[0]), &wide(&host.plan));
                println!(
                    "{name}: plan off by {distance:.1e}, {} passes, host {}",
                    found.passes, host.convergence.iterations
                );
                assert!(distance < close, "{name}: {distance:e}");
                // Potentials of parts that hardly exchange mass are decided by the tolerance only: not the last kind's.
                assert!(
                    k == 2 || potentials_agree(found, &host, 0.1 * close),
                    "{name}: {found:?}"
                );
                let of_potentials = implied(found, &cost, how.epsilon);
                let distance = relative(&of_potentials, &wide(&plans[0]));
                assert!(distance < 1e-6, "{name}: {distance:e}");
                let value = host.row_mass.iter().zip(&host.row_potential);
                let value: f64 = value.map(|(m, f)| m * f).sum();
                let columns = host.column_mass.iter().zip(&host.column_potential);
                let value = value + columns.map(|(m, g)| m * g).sum::<f64>();
                let near = |a: f64, b: f64| (a - b).abs() < 1e-5 * b.abs().max(0.1);
                assert!(near(found.entropic_value, value), "{name}: {found:?}");
                let paid = wide(&plans[0]);
                let paid: f64 = paid.iter().zip(&cost).map(|(t, &c)| t * f64::from(c)).sum();
                assert!(near(found.transport_cost, paid), "{name}: {found:?}");
                assert!(
                    found.passes <= 3 * host.convergence.iterations + 50,
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn tiny_and_large_epsilons_and_degenerate_costs_are_solved_as_on_the_host() {
    let (n, m) = (24, 18);
    let [flat, matching, _] = costs(n, m, 52);
    for (cost, epsilon) in [
        (matching.clone(), 0.005),
        (matching, 1e3),
        (flat.iter().map(|c| c * 30.0).collect(), 0.1),
        (flat.iter().map(|c| c * 1e-30).collect(), 0.1),
        // Common to all, and far above epsilon.
        (flat.iter().map(|c| c + 4096.0).collect(), 0.1),
        (vec![0.25; n * m], 0.1),
        (vec![-3e4; n * m], 1e-3),
    ] {
        let how = how(epsilon, 1e-9);
        let host = by_host(&cost, n, m, how);
        let (plans, found) = by_kernel(&[Given::uniform(cost, n, m)], how);
        assert!(
            host.convergence.converged && found[0].error <= 1e-9,
            "{epsilon}: {host:?}"
        );
        let distance = relative(&wide(&plans[0]), &wide(&host.plan));
        assert!(distance < 2e-6, "{epsilon}: {distance:e}");
    }
    // An assignment, where an entropic solver needs more steps than the limit: rows are exact all the same, and nothing hangs.
    for scale in [1e3, 1e5_f32] {
        let cost: Vec<f32> = flat.iter().map(|c| c * scale).collect();
        let limited = Solving {
            passes_max: 300,
            ..how(0.1, 1e-6)
        };
        let (plans, found) = by_kernel(&[Given::uniform(cost, n, m)], limited);
        assert_eq!(found[0].ending, Ending::Solved);
        // A direction and a step may be under way when the limit is reached.
        assert!(found[0].passes <= 302 && plans[0].iter().all(|t| t.is_finite()));
        for mass in &found[0].row_mass {
            assert!((mass * n as f64 - 1.0).abs() < 1e-5, "{scale}: {mass}");
        }
    }
}

#[test]
fn rows_and_columns_without_mass_are_not_there() {
    let (n, m) = (9, 13);
    let full = Given::uniform(costs(n, m, 53)[1].clone(), n, m);
    // The first rows and columns of a problem, and every other of one, beside what nobody looks at.
    let kept = [
        (vec![0, 1, 2, 3, 4], vec![0, 1, 2]),
        (vec![1, 3, 8], (0..12).step_by(2).collect()),
    ];
    let mut given = vec![full];
    let mut alone = Vec::new();
    for (rows, columns) in &kept {
        let small = costs(rows.len(), columns.len(), 54)[0].clone();
        let mut padded = Given {
            cost: vec![f32::NAN; n * m],
            a: vec![0.0; n],
            b: vec![0.0; m],
        };
        for (k, &i) in rows.iter().enumerate() {
            padded.a[i] = 1.0 / rows.len() as f64;
            for (l, &j) in columns.iter().enumerate() {
                padded.b[j] = 1.0 / columns.len() as f64;
                padded.cost[i * m + j] = small[k * columns.len() + l];
            }
        }
        given.push(padded);
        alone.push(small);
    }
    let how = how(0.05, 1e-9);
    let (plans, found) = by_kernel(&given, how);
    let host = by_host(&given[0].cost, n, m, how);
    assert!(relative(&wide(&plans[0]), &wide(&host.plan)) < 1e-6);
    for (p, (rows, columns)) in kept.iter().enumerate() {
        let host = by_host(&alone[p], rows.len(), columns.len(), how);
        let (plan, found) = (&plans[p + 1], &found[p + 1]);
        let inside = rows
            .iter()
            .flat_map(|i| columns.iter().map(move |j| plan[i * m + j]));
        let inside: Vec<f32> = inside.collect();
        assert!(relative(&wide(&inside), &wide(&host.plan)) < 1e-6);
        assert_eq!(plan.iter().filter(|t| **t != 0.0).count(), inside.len());
        for i in 0..n {
            let there = rows.contains(&i);
            assert_eq!(found.row_mass[i] > 0.0, there);
            assert_eq!(found.row_potential[i] > f64::NEG_INFINITY, there);
        }
        assert!(found.error <= 1e-9 && found.entropic_value.is_finite());
    }
}

#[test]
fn masses_that_are_not_uniform_are_met() {
    let (n, m) = (31, 40);
    let mut given = Given::uniform(costs(n, m, 55)[1].clone(), n, m);
    let mut random = Random::new(56);
    for side in [&mut given.a, &mut given.b] {
        side.iter_mut().for_each(|x| *x = 0.05 + random.uniform());
        let sum: f64 = side.iter().sum();
        side.iter_mut().for_each(|x| *x /= sum);
    }
    let (a, b) = (given.a.clone(), given.b.clone());
    let (_, found) = by_kernel(&[given], how(0.05, 1e-9));
    assert!(found[0].newton_steps > 0);
    for (mass, wanted) in found[0].row_mass.iter().zip(a) {
        assert!((mass / wanted - 1.0).abs() < 1e-6);
    }
    for (mass, wanted) in found[0].column_mass.iter().zip(b) {
        assert!((mass / wanted - 1.0).abs() < 1e-6);
    }
}

#[test]
fn costs_that_are_not_finite_are_named_and_a_limit_is_kept() {
    let (n, m) = (40, 35);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut cost = costs(n, m, 57)[0].clone();
        (cost[3 * m + 20], cost[17 * m]) = (bad, bad);
        let good = Given::uniform(costs(n, m, 58)[0].clone(), n, m);
        let (plans, found) = by_kernel(&[Given::uniform(cost, n, m), good], how(0.1, 1e-6));
        assert_eq!(found[0].ending, Ending::CostNotFinite(3));
        assert!(plans[0].iter().all(|t| *t == 0.0));
        assert_eq!(found[1].ending, Ending::Solved);
    }
    let limited = Solving {
        passes_max: 3,
        ..how(0.02, 1e-9)
    };
    let (_, found) = by_kernel(&[Given::uniform(costs(n, m, 59)[1].clone(), n, m)], limited);
    assert!(found[0].passes <= 3 && found[0].error > 1e-9 && found[0].marginal_error > 1e-9);
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_problem_among_others_is_solved_to_the_bit_as_alone() {
    let (n, m) = (30, 26);
    let mut given = costs(n, m, 60)
        .map(|cost| Given::uniform(cost, n, m))
        .to_vec();
    // One that ends before it begins, beside others that go on.
    let mut bad = given[0].clone();
    bad.cost[5] = f32::NAN;
    given.push(bad);
    // To a tolerance in f32, in f64 after f32, in f64, and to the limit.
    for (epsilon, tolerance, passes_max) in [
        (0.1, 1e-6, 600),
        (0.05, 6e-7, 600),
        (0.1, 1e-9, 600),
        (0.02, 1e-9, 90),
    ] {
        let how = Solving {
            passes_max,
            ..how(epsilon, tolerance)
        };
        let (plans, found) = by_kernel(&given, how);
        let ended: Vec<usize> = found.iter().map(|of| of.passes).collect();
        assert!(ended[..3].iter().any(|passes| *passes > 40), "{ended:?}");
        assert_eq!(found[3].ending, Ending::CostNotFinite(0));
        for (problem, given) in given.iter().enumerate() {
            let (plan, alone) = by_kernel(std::slice::from_ref(given), how);
            assert_eq!(bits(&plan[0]), bits(&plans[problem]), "{how:?}: {problem}");
            assert!(alone[0] == found[problem] || problem == 3);
        }
    }
}

/// Rows are shared by up to 64 blocks, of which the last may have fewer, or a problem all of its rows in one.
#[test]
fn rows_of_many_blocks_are_those_of_one() {
    for (n, m) in [(1, 9), (8, 3), (9, 4), (515, 5), (5, 700)] {
        let cost = costs(n, m, 62)[0].clone();
        let how = how(0.1, 1e-9);
        let host = by_host(&cost, n, m, how);
        let (plans, found) = by_kernel(&[Given::uniform(cost, n, m)], how);
        assert!(found[0].error <= 1e-9, "{n} x {m}: {:?}", found[0].passes);
        let distance = relative(&wide(&plans[0]), &wide(&host.plan));
        assert!(distance < 1e-6, "{n} x {m}: {distance:e}");
    }
}

#[test]
fn a_sharp_gradient_among_others_is_to_the_bit_that_of_one_alone() {
    let (n, m) = (24, 31);
    let [flat, matching, _] = costs(n, m, 61);
    let how = how(0.05, 1e-9);
    let gradients = |costs: &[Vec<f32>]| {
        let given: Vec<Given> = costs
            .iter()
            .map(|cost| Given::uniform(cost.clone(), n, m))
            .collect();
        let (plans, _) = by_kernel(&given, how);
        let shape = (costs.len(), n, m);
        let cost = Tensor::from_vec(costs.concat(), shape, &Device::Cpu).unwrap();
        let plan = Tensor::from_vec(plans.concat(), shape, &Device::Cpu).unwrap();
        let count = costs.len();
        let problems = Problems { count, n, m };
        let made = problems.sharp_gradients(&EMULATED, (&cost, &plan), &how);
        let (gradient, met) = made.unwrap();
        assert!(met.iter().all(|met| *met));
        bits(&gradient.flatten_all().unwrap().to_vec1().unwrap())
    };
    let both = gradients(&[flat.clone(), matching.clone()]);
    assert_eq!(both, [gradients(&[flat]), gradients(&[matching])].concat());
}
