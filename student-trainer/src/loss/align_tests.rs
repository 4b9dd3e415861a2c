//! Every plan with every cost and every loss: values against a slow form in f64, gradients by its central differences, with
//! the plan moving along and with the plan held.

use super::align_config::{AlignConfig, AlignLoss, Cost, Marginals, Similarity};
use super::plan::reference::{self as plans, Problem};
use super::plan::{PlanKind, PlanOptions};
use super::reference::{self, Matrix, central_differences, softmax};
use super::testing::{Case, SQUARE, Sizes, relative, tensor, widened};
use super::*;

/// f32 arithmetic on sums of a few dozen terms.
const VALUE: f64 = 1e-5;
const GRADIENT: f64 = 1e-4;

const SIZES: Sizes = Sizes { m: 7, ..SQUARE };

const PLANS: [PlanKind; 8] = [
    PlanKind::Sinkhorn,
    PlanKind::Unbalanced,
    PlanKind::Partial,
    PlanKind::Mutual,
    PlanKind::Row,
    PlanKind::Monotone,
    PlanKind::Uniform,
    PlanKind::Links,
];

/// Unequal sequences with places, links and equal spans.
fn case() -> Case {
    let mut case = Case::new(SIZES, 51);
    let places = |of: usize| (0..of).map(|k| (k as f64 / of as f64).sqrt()).collect();
    case.targets.alignment = Some(Alignment {
        pairs: vec![None; SIZES.n],
        student_places: places(SIZES.n),
        teacher_places: places(SIZES.m),
        links: vec![(0, 1), (1, 1), (1, 4), (3, 6), (4, 0)],
        equal: vec![(0, 1), (2, 5)],
        ..Alignment::default()
    });
    case
}

fn settings(plan: PlanKind, loss: AlignLoss, cost: Cost) -> AlignConfig {
    AlignConfig {
        plan,
        cost,
        loss,
        similarity: Similarity::Bhattacharyya,
        temperature: 0.3,
        kappa: 4.0,
        epsilon: 0.3,
        rho_student: 0.4,
        rho_teacher: 0.7,
        mass: 0.6,
        marginals: Marginals::Entropy,
        position: Some(0.5),
        bytes: 0.2,
        links: 0.3,
        tolerance: 1e-9,
        ..AlignConfig::default()
    }
}

/// The slow form.
struct Slow<'a> {
    case: &'a Case,
    align: &'a AlignConfig,
}

impl Slow<'_> {
    fn cost(&self, x: &Matrix, kind: Cost, kappa: f64) -> Matrix {
        let whole = (0..SIZES.n, 0..SIZES.m);
        reference::cost(x, &self.case.teacher, (kind, kappa), whole, self.align)
    }

    fn options(&self) -> PlanOptions {
        PlanOptions {
            kind: self.align.plan,
            epsilon: self.align.epsilon,
            rho_student: self.align.rho_student,
            rho_teacher: self.align.rho_teacher,
            mass: self.align.mass,
            tolerance: self.align.tolerance,
            max_iterations: self.align.max_iterations,
        }
    }

    fn teacher_masses(&self) -> Vec<f64> {
        let mass = |j: usize| {
            let teacher = &self.case.teacher;
            let kept = teacher.kept[j].iter();
            let logits: Vec<f64> = kept.map(|&v| teacher.logits.at(j, v)).collect();
            let p = softmax(&logits, 1.0);
            let entropy = -p.iter().map(|p| p * p.ln()).sum::<f64>();
            match self.align.marginals {
                Marginals::Uniform => 1.0,
                Marginals::Entropy => entropy,
                Marginals::Confidence => (-entropy).exp(),
            }
        };
        let masses: Vec<f64> = (0..SIZES.m).map(mass).collect();
        let sum: f64 = masses.iter().sum();
        masses.iter().map(|mass| mass / sum).collect()
    }

    fn problem(&self, x: &Matrix) -> Problem {
        let align = self.align;
        let cost = self.cost(x, align.solved(), align.kappa);
        let alignment = self.case.targets.alignment.as_ref().unwrap();
        let joined = |pairs: &[(u32, u32)], i: usize, j: usize| {
            f64::from(u8::from(pairs.contains(&(i as u32, j as u32))))
        };
        let cost = Matrix::from_fn(SIZES.n, SIZES.m, |i, j| {
            let gap = alignment.student_places[i] - alignment.teacher_places[j];
            cost.at(i, j) + align.position(false) * gap * gap
                - align.bytes * joined(&alignment.equal, i, j)
                - align.links * joined(&alignment.links, i, j)
        });
        Problem {
            cost,
            a: vec![1.0 / SIZES.n as f64; SIZES.n],
            b: self.teacher_masses(),
            links: alignment.links.clone(),
        }
    }

    fn plan(&self, x: &Matrix) -> Matrix {
        plans::plan(&self.problem(x), &self.options())
    }

    /// What is paid at `x`, on `held` or on the plan of `x`.
    fn value(&self, x: &Matrix, held: Option<&Matrix>) -> f64 {
        let align = self.align;
        if align.loss == AlignLoss::Entropic {
            return plans::value(&self.problem(x), &self.options());
        }
        let paid = self.cost(x, align.paid(), align.paid_kappa());
        let plan = held.cloned().unwrap_or_else(|| self.plan(x));
        plan.data.iter().zip(&paid.data).map(|(t, c)| t * c).sum()
    }
}

fn check(case: &Case, align: AlignConfig) {
    let config = LossConfig {
        ce_weight: 0.0,
        kl_weight: 0.0,
        ot_weight: 0.7,
        align,
        chunk_rows: 2,
        ..LossConfig::default()
    };
    config.validate().unwrap();
    let (hidden, geometry) = (tensor(&case.hidden), case.geometry());
    let run = || head_loss(&hidden, &case.labels, &case.targets, &geometry, &config);
    let loss = run().unwrap();
    assert!(loss.values.report.convergence.converged, "{config:?}");
    let slow = Slow {
        case,
        align: &config.align,
    };
    let logits = |hidden: &Matrix| hidden.times_transposed(&case.head);
    let x = logits(&case.hidden);
    let held = slow.plan(&x);
    let expected = slow.value(&x, None);
    let found = loss.values.ot;
    assert!(
        (found - expected).abs() <= VALUE * expected.abs().max(0.1),
        "{config:?}: {found} for {expected}"
    );
    let through = config.align.goes_through_plan() || config.align.loss == AlignLoss::Entropic;
    let held = (!through).then_some(&held);
    let value = |hidden: &Matrix| 0.7 * slow.value(&logits(hidden), held);
    let gradient = central_differences(&case.hidden, 1e-5, value);
    let distance = relative(&widened(&loss.grad_hidden), &gradient.data);
    assert!(distance < GRADIENT, "{config:?}: off by {distance:e}");
}

#[test]
fn plans_paid_for_their_own_cost_match_the_slow_form() {
    let case = case();
    for plan in PLANS {
        for cost in [Cost::Kl, Cost::SoftmaxSimilarity] {
            for loss in [AlignLoss::Entropic, AlignLoss::Sharp] {
                let align = settings(plan, loss, cost);
                if align.validate().is_ok() {
                    check(&case, align);
                }
            }
        }
    }
}

#[test]
fn plans_that_pay_another_cost_match_the_slow_form_held_and_not() {
    let case = case();
    for plan in PLANS {
        for (cost, loss) in [
            (Cost::Kl, AlignLoss::Kl),
            (Cost::SoftmaxSimilarity, AlignLoss::Kl),
            (Cost::Kl, AlignLoss::Similarity),
        ] {
            for through_plan in [false, true] {
                check(
                    &case,
                    AlignConfig {
                        through_plan,
                        ..settings(plan, loss, cost)
                    },
                );
            }
        }
    }
}

#[test]
fn every_marginal_matches_the_slow_form() {
    let case = case();
    for marginals in [
        Marginals::Uniform,
        Marginals::Entropy,
        Marginals::Confidence,
    ] {
        check(
            &case,
            AlignConfig {
                marginals,
                ..settings(PlanKind::Sinkhorn, AlignLoss::Sharp, Cost::Kl)
            },
        );
    }
}

/// Costs of whole logits go the same way.
#[test]
fn plans_of_whole_logits_match_the_slow_form() {
    let case = case();
    for (cost, loss) in [
        (Cost::SquaredEuclidean, AlignLoss::Kl),
        (Cost::SquaredEuclidean, AlignLoss::Sharp),
        (Cost::SoftmaxSimilarity, AlignLoss::Kl),
    ] {
        for plan in [PlanKind::Mutual, PlanKind::Unbalanced] {
            check(
                &case,
                AlignConfig {
                    similarity: Similarity::Cosine,
                    through_plan: true,
                    ..settings(plan, loss, cost)
                },
            );
        }
    }
}

/// Transport alone beside cross-entropy.
fn paying(align: AlignConfig) -> LossConfig {
    LossConfig {
        kl_weight: 0.0,
        ot_weight: 1.0,
        align,
        ..LossConfig::default()
    }
}

/// Two texts may tell things in any order, two readings of one text do not.
#[test]
fn pairs_were_held_near_the_diagonal_unless_told_otherwise() {
    let value = |is_pair: bool, position: Option<f64>| {
        let mut case = case();
        case.targets.alignment.as_mut().unwrap().is_pair = is_pair;
        let align = AlignConfig {
            position,
            ..settings(PlanKind::Sinkhorn, AlignLoss::Sharp, Cost::Kl)
        };
        let config = paying(align);
        let (hidden, geometry) = (tensor(&case.hidden), case.geometry());
        let loss = head_loss(&hidden, &case.labels, &case.targets, &geometry, &config);
        loss.unwrap().values.ot
    };
    assert_eq!(value(true, None), value(true, Some(0.0)));
    assert_eq!(value(false, None), value(false, Some(1000.0)));
    assert_eq!(value(true, Some(1000.0)), value(false, Some(1000.0)));
    assert!(value(true, None) != value(false, None));
}

/// A record that joins nothing pays nothing.
#[test]
fn no_links_are_no_loss() {
    let mut case = case();
    case.targets.alignment.as_mut().unwrap().links.clear();
    let config = paying(settings(PlanKind::Links, AlignLoss::Kl, Cost::Kl));
    let (hidden, geometry) = (tensor(&case.hidden), case.geometry());
    let run = |config| head_loss(&hidden, &case.labels, &case.targets, &geometry, config).unwrap();
    let found = run(&config);
    let without = run(&LossConfig {
        ot_weight: 0.0,
        ..config.clone()
    });
    assert_eq!(found.values.ot, 0.0);
    assert_eq!(widened(&found.grad_hidden), widened(&without.grad_hidden));
}
