//! The losses against torch, POT, OTT-JAX and SciPy in float64 (tests/fixtures/make_losses.py): values to 1e-5, gradients
//! to 1e-4, plans to the solver's tolerance.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use distill_proto::{Estimator, Rows, ValueCoding};
use serde::de::DeserializeOwned;

use super::plan::{PlanKind, PlanOptions, PlanProblem, solve_plan};
use super::sinkhorn::{SolverOptions, solve};
use super::testing::{hidden_targets, relative, widened};
use super::transport_kernel_tests::{Given, by_kernel, how};
use super::*;

/// A file of fixtures: cases from JSON, tensors from safetensors.
struct Fixtures<C> {
    cases: Vec<C>,
    tensors: HashMap<String, Tensor>,
}

impl<C: DeserializeOwned> Fixtures<C> {
    fn read(name: &str) -> Self {
        let folder: PathBuf =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/losses");
        let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let file = folder.join(format!("{name}.safetensors"));
        Self {
            cases: serde_json::from_value(json["cases"].take()).unwrap(),
            tensors: candle_core::safetensors::load(file, &Device::Cpu).unwrap(),
        }
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.tensors[name].to_dtype(DType::F32).unwrap()
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        self.tensor(name).flatten_all().unwrap().to_vec1().unwrap()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let tensor = self.tensors[name].flatten_all().unwrap();
        tensor.to_vec1().unwrap()
    }

    #[track_caller]
    fn close(&self, name: &str, found: &Tensor) {
        let distance = relative(&widened(found), &widened(&self.tensor(name)));
        assert!(distance <= 1e-4, "{name} off by {distance:e}");
    }
}

#[track_caller]
fn equal(name: &str, what: &str, found: f64, expected: f64) {
    // `entropic` may be close to 0 while its two parts are not.
    let scale = expected.abs().max(0.1);
    assert!(
        (found - expected).abs() <= 1e-5 * scale,
        "{name}: {what} {found} for {expected}"
    );
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    data: String,
    top_k: Option<usize>,
    ce: f64,
    kl: f64,
    reverse_kl: f64,
    jsd: f64,
    ot: f64,
    total: f64,
    config: LossConfig,
}

#[test]
fn values_and_gradients_match_torch_and_pot() {
    let fixtures = Fixtures::<Case>::read("losses");
    assert!(fixtures.cases.len() >= 46);
    for case in &fixtures.cases {
        let name = &case.name;
        let of = |what: &str| format!("{}.{what}", case.data);
        let labels = fixtures.ids(&of("labels"));
        let (x, y) = (
            fixtures.tensor(&of("student")),
            fixtures.tensor(&of("teacher")),
        );
        let loss = dense_loss(&x, &y, Some(&labels), case.top_k, &case.config).unwrap();
        assert!(
            loss.values.report.convergence.converged,
            "{name}: {:?}",
            loss.values
        );
        equal(name, "ce", loss.values.ce, case.ce);
        equal(name, "kl", loss.values.kl, case.kl);
        equal(name, "reverse KL", loss.values.reverse_kl, case.reverse_kl);
        equal(name, "JSD", loss.values.jsd, case.jsd);
        equal(name, "ot", loss.values.ot, case.ot);
        equal(name, "total", loss.values.total, case.total);
        fixtures.close(&format!("{name}.grad_ot"), &loss.grad_ot.unwrap());
        fixtures.close(&format!("{name}.grad_total"), &loss.grad_total);
    }
}

#[derive(serde::Deserialize)]
struct DrawnCase {
    name: String,
    estimator: String,
    kl: Option<f64>,
    ot: f64,
    config: LossConfig,
}

/// Through the fused head: with the identity as head, hidden states are logits.
#[test]
fn drawn_rows_match_torch() {
    let fixtures = Fixtures::<DrawnCase>::read("estimators");
    for case in &fixtures.cases {
        let name = &case.name;
        let of = |what: &str| format!("{name}.{what}");
        let x = fixtures.tensor(&of("student"));
        let (n, vocab) = x.dims2().unwrap();
        let (rows, k) = fixtures.tensors[&of("ids")].dims2().unwrap();
        let targets = Targets::from_rows(&Rows {
            rows,
            k,
            vocab_size: vocab as u32,
            estimator: match case.estimator.as_str() {
                "sampled" => Estimator::Sampled,
                _ => Estimator::HeadSampled,
            },
            coding: ValueCoding::F16,
            ids: fixtures.ids(&of("ids")),
            logits: fixtures.numbers(&of("logits")),
            counts: fixtures.ids(&of("counts")),
            max: vec![0.0; rows],
            mean: vec![0.0; rows],
            std: vec![1.0; rows],
            temperatures: vec![1.0],
            logsumexp: vec![fixtures.numbers(&of("logsumexp"))],
            state: None,
        });
        let identity = Tensor::eye(vocab, DType::F32, &Device::Cpu).unwrap();
        let geometry = HeadGeometry::new(&identity, None).unwrap();
        let labels = vec![0; n];
        let only = |kl_weight, ot_weight| LossConfig {
            kl_weight,
            ot_weight,
            ce_weight: 0.0,
            ..case.config.clone()
        };
        let run = |config| head_loss(&x, &labels, &targets, &geometry, &config).unwrap();
        let transport = run(only(0.0, 1.0));
        equal(name, "ot", transport.values.ot, case.ot);
        fixtures.close(&of("grad_ot"), &transport.grad_hidden);
        if let Some(kl) = case.kl {
            let loss = run(only(1.0, 0.0));
            equal(name, "kl", loss.values.kl, kl);
            fixtures.close(&of("grad_kl"), &loss.grad_hidden);
        }
    }
}

#[derive(serde::Deserialize)]
struct HiddenCase {
    name: String,
    ot: f64,
    config: AlignConfig,
}

#[test]
fn transport_between_hidden_states_matches_torch() {
    let fixtures = Fixtures::<HiddenCase>::read("hidden");
    let (x, y) = (fixtures.tensor("student"), fixtures.tensor("teacher"));
    let targets = hidden_targets(fixtures.numbers("teacher"), y.dims()[0]);
    let projection = fixtures.tensor("projection");
    let projection = HiddenProjection::from_tensor(&projection, StateLayer::default()).unwrap();
    let states = [LayerStates {
        states: &x,
        projection: &projection,
    }];
    // Of its logits nothing is asked.
    let hidden = Tensor::zeros((x.dims()[0], 1), DType::F32, &Device::Cpu).unwrap();
    let head = Tensor::ones((1, 1), DType::F32, &Device::Cpu).unwrap();
    let geometry = HeadGeometry::new(&head, None).unwrap();
    for case in &fixtures.cases {
        let name = &case.name;
        let config = LossConfig {
            ce_weight: 0.0,
            kl_weight: 0.0,
            ot_weight: 1.0,
            align: case.config.clone(),
            ..LossConfig::default()
        };
        let student = Student {
            hidden: &hidden,
            states: &states,
        };
        let labels = vec![0; x.dims()[0]];
        let loss = head_loss(student, &labels, &targets, &geometry, &config).unwrap();
        equal(name, "ot", loss.values.ot, case.ot);
        let found = &loss.grad_states[0];
        fixtures.close(&format!("{name}.grad_student"), &found.states);
        fixtures.close(&format!("{name}.grad_projection"), &found.projection);
    }
}

#[derive(serde::Deserialize)]
struct PlanCase {
    name: String,
    matrix: String,
    epsilon: f64,
    transport_cost: f64,
    entropic_value: f64,
}

/// POT, OTT-JAX and SciPy agree on these plans to 1e-8; the solver, and the kernel in its emulator.
#[test]
fn plans_match_three_other_solvers() {
    let fixtures = Fixtures::<PlanCase>::read("plans");
    for case in &fixtures.cases {
        let cost = format!("{}.cost", case.matrix);
        let (n, m) = fixtures.tensors[&cost].dims2().unwrap();
        let cost = fixtures.numbers(&cost);
        let options = SolverOptions {
            epsilon: case.epsilon,
            tolerance: 1e-9,
            max_iterations: 100_000,
            newton: true,
        };
        let solution = solve(&cost, n, m, &options).unwrap();
        let name = &case.name;
        assert!(
            solution.convergence.converged,
            "{name}: {:e}",
            solution.convergence.marginal_error
        );
        let plan: Vec<f64> = solution.plan.iter().map(|&t| f64::from(t)).collect();
        let expected = widened(&fixtures.tensor(&format!("{name}.plan")));
        let distance = relative(&plan, &expected);
        assert!(distance < 1e-5, "{name}: plan off by {distance:e}");
        let paid: f64 = plan.iter().zip(&cost).map(|(t, &c)| t * f64::from(c)).sum();
        equal(name, "<T,C>", paid, case.transport_cost);
        let entropy: f64 = plan.iter().filter(|t| **t > 0.0).map(|t| t * t.ln()).sum();
        equal(
            name,
            "F",
            paid + case.epsilon * entropy,
            case.entropic_value,
        );
        let column_error = |j: usize| {
            let mass: f64 = plan.iter().skip(j).step_by(m).sum();
            (mass - 1.0 / m as f64).abs()
        };
        let error: f64 = (0..m).map(column_error).sum();
        // The plan is kept in f32.
        assert!(error < 1e-6, "{name}: marginals off by {error:e}");
        let given = Given::uniform(cost, n, m);
        let (plans, found) = by_kernel(&[given], how(case.epsilon as f32, 1e-9));
        let plan: Vec<f64> = plans[0].iter().map(|&t| f64::from(t)).collect();
        let distance = relative(&plan, &expected);
        assert!(distance < 1e-5, "{name}: the kernel's off by {distance:e}");
        let (cost, value) = (found[0].transport_cost, found[0].entropic_value);
        equal(name, "the kernel's <T,C>", cost, case.transport_cost);
        equal(name, "the kernel's F", value, case.entropic_value);
    }
}

#[derive(serde::Deserialize)]
struct BetweenCase {
    name: String,
    problem: String,
    kind: PlanKind,
    epsilon: f64,
    /// Infinite where the fixture has null, and where the kind has none.
    rho_student: Option<f64>,
    rho_teacher: Option<f64>,
    mass: Option<f64>,
    value: Option<f64>,
}

/// POT, OTT-JAX and torch in f64 (make_plans_between.py), on plans that f32 keeps.
#[test]
fn plans_between_positions_match_pot_and_ott() {
    let fixtures = Fixtures::<BetweenCase>::read("between");
    assert!(fixtures.cases.len() >= 99);
    for case in &fixtures.cases {
        let (name, of) = (&case.name, |what: &str| format!("{}.{what}", case.problem));
        let masses = |what: &str| fixtures.tensors[&of(what)].to_vec1::<f64>().unwrap();
        let (a, b) = (masses("a"), masses("b"));
        let problem = PlanProblem {
            cost: &fixtures.numbers(&of("cost")),
            a: &a,
            b: &b,
            links: &[],
        };
        let options = PlanOptions {
            kind: case.kind,
            epsilon: case.epsilon,
            rho_student: case.rho_student.unwrap_or(f64::INFINITY),
            rho_teacher: case.rho_teacher.unwrap_or(f64::INFINITY),
            mass: case.mass.unwrap_or(1.0),
            tolerance: 1e-11,
            max_iterations: 100_000,
        };
        let plan = solve_plan(problem, &options).unwrap();
        assert!(plan.convergence().converged, "{name}");
        let close = |what: &str, found: &[f32], tolerance: f64| {
            let found: Vec<f64> = found.iter().map(|&t| f64::from(t)).collect();
            let expected = fixtures.tensors[&format!("{name}.{what}")]
                .flatten_all()
                .unwrap();
            let expected: Vec<f64> = expected.to_vec1().unwrap();
            let pairs = found.iter().zip(&expected);
            let distance = pairs.map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();
            let size = expected.iter().map(|y| y * y).sum::<f64>().sqrt();
            // A plan of one column or row does not move: the gradient is what rounding leaves.
            assert!(
                distance <= tolerance * size + 1e-7,
                "{name}: {what} off by {distance:e}"
            );
        };
        close("plan", plan.plan(), 1e-6);
        let (gradient, solved) = plan.pull_back(&fixtures.numbers(&of("paid")));
        assert!(solved, "{name}");
        close("gradient", &gradient, 1e-5);
        assert_eq!(
            plan.entropic_value().is_some(),
            case.value.is_some(),
            "{name}"
        );
        if let (Some(found), Some(expected)) = (plan.entropic_value(), case.value) {
            assert!(
                (found.value - expected).abs() < 1e-6,
                "{name}: {found:?} for {expected}"
            );
        }
    }
}
