//! Transport between hidden states of one pair of layers and of several against a slow form in f64, gradients by central
//! differences.

use candle_core::Device;

use super::super::config::{AlignConfig, AlignLoss, Cost, LossConfig, Similarity};
use super::super::head::{HeadLoss, Student, head_loss_with_head};
use super::super::plan::PlanKind;
use super::super::reference::{self, Matrix};
use super::super::testing::{
    Case, Random, SQUARE, Sizes, hidden_targets, relative, tensor, widened,
};
use super::*;

const SIZES: Sizes = Sizes { m: 7, ..SQUARE };
const N: usize = SIZES.n;
const M: usize = SIZES.m;
const HIDDEN: usize = 4;
const TEACHER: usize = 6;

fn matrix(rows: usize, columns: usize, random: &mut Random) -> Matrix {
    let data = random.normals(rows * columns, 1.0);
    Matrix {
        rows,
        columns,
        data: data.into_iter().map(|x| f64::from(x as f32)).collect(),
    }
}

/// One pair of layers.
#[derive(Clone)]
struct Pair {
    x: Matrix,
    y: Matrix,
    p: Matrix,
    weight: f64,
    /// Fitted means of Y and X, `[1, D]` and `[1, d]`.
    means: Option<(Matrix, Matrix)>,
}

/// Pairs with the weights 1, 0.5, 0.25...
fn pairs(count: usize, is_fitted: bool) -> Vec<Pair> {
    let mut random = Random::new(5);
    let mut pair = |k: usize| Pair {
        x: matrix(N, HIDDEN, &mut random),
        y: matrix(M, TEACHER, &mut random),
        p: matrix(TEACHER, HIDDEN, &mut random),
        weight: 0.5f64.powi(k as i32),
        means: is_fitted.then(|| {
            (
                matrix(1, TEACHER, &mut random),
                matrix(1, HIDDEN, &mut random),
            )
        }),
    };
    (0..count).map(&mut pair).collect()
}

/// Logits of both sides, and the teacher's states of all pairs beside the rows.
fn case(pairs: &[Pair]) -> Case {
    let mut case = Case::new(SIZES, 51);
    let states = case.targets.state.as_mut().unwrap();
    states.layers = pairs.len();
    states.rank = pairs.len() * TEACHER;
    let rows = (0..M).flat_map(|j| pairs.iter().flat_map(move |pair| pair.y.row(j)));
    states.values = rows.map(|&y| y as f32).collect();
    case
}

fn projection(k: usize, pair: &Pair) -> HiddenProjection {
    let layer = StateLayer {
        teacher_state: k,
        student_layer: Some(k),
        weight: pair.weight,
    };
    let projection = HiddenProjection::from_tensor(&tensor(&pair.p), layer).unwrap();
    match &pair.means {
        None => projection,
        Some((teacher, student)) => {
            let row = |mean: &Matrix| tensor(mean).squeeze(0).unwrap();
            projection.with_means(&row(teacher), &row(student)).unwrap()
        }
    }
}

/// The whole loss of a student that pays for transport alone.
fn loss(pairs: &[Pair], align: &AlignConfig) -> Result<HeadLoss> {
    Ok(loss_and_head(pairs, align)?.0)
}

/// Also its gradient in the head.
fn loss_and_head(pairs: &[Pair], align: &AlignConfig) -> Result<(HeadLoss, Tensor)> {
    let config = LossConfig {
        ce_weight: 0.0,
        kl_weight: 0.0,
        ot_weight: 0.7,
        align: align.clone(),
        ..LossConfig::default()
    };
    let case = case(pairs);
    let hidden = tensor(&case.hidden);
    let projections: Vec<HiddenProjection> = pairs
        .iter()
        .enumerate()
        .map(|(k, pair)| projection(k, pair))
        .collect();
    let states: Vec<Tensor> = pairs.iter().map(|pair| tensor(&pair.x)).collect();
    let both = states.iter().zip(&projections);
    let states: Vec<LayerStates> = both
        .map(|(states, projection)| LayerStates { states, projection })
        .collect();
    let student = Student {
        hidden: &hidden,
        states: &states,
    };
    let (labels, targets, geometry) = (&case.labels, Some(&case.targets), case.geometry());
    head_loss_with_head(student, labels, targets, &geometry, &config)
}

/// Rows less a mean: their own, or `[1, columns]`.
fn less_mean(rows: &Matrix, mean: Option<&Matrix>) -> Matrix {
    let own = |k| (0..rows.rows).map(|i| rows.at(i, k)).sum::<f64>() / rows.rows as f64;
    Matrix::from_fn(rows.rows, rows.columns, |i, k| {
        rows.at(i, k) - mean.map_or_else(|| own(k), |mean| mean.at(0, k))
    })
}

fn cosines(x: &Matrix, y: &Matrix, p: &Matrix) -> Matrix {
    let z = y.times_transposed(&Matrix::from_fn(HIDDEN, TEACHER, |i, j| p.at(j, i)));
    let norm = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>().sqrt();
    let dots = x.times_transposed(&z);
    Matrix::from_fn(N, M, |i, j| {
        dots.at(i, j) / (norm(x.row(i)) * norm(z.row(j)))
    })
}

/// The weighted mean over all pairs.
fn mean_over(pairs: &[Pair], of: impl Fn(&Pair) -> Matrix) -> Matrix {
    let all: f64 = pairs.iter().map(|pair| pair.weight).sum();
    let parts: Vec<Matrix> = pairs.iter().map(of).collect();
    Matrix::from_fn(N, M, |i, j| {
        let terms = pairs.iter().zip(&parts);
        terms
            .map(|(pair, part)| pair.weight / all * part.at(i, j))
            .sum()
    })
}

fn cost(pairs: &[Pair], kind: Cost, kappa: f64, align: &AlignConfig) -> Matrix {
    match kind {
        Cost::Hidden => mean_over(pairs, |pair| {
            let (teacher, student) = pair.means.as_ref().map(|(y, x)| (y, x)).unzip();
            let (x, y) = (less_mean(&pair.x, student), less_mean(&pair.y, teacher));
            let cosines = cosines(&x, &y, &pair.p);
            Matrix::from_fn(N, M, |i, j| 1.0 - cosines.at(i, j))
        }),
        Cost::Kl => {
            let case = case(pairs);
            let logits = case.hidden.times_transposed(&case.head);
            reference::kl_cost(&logits, &case.teacher, kappa)
        }
        _ => {
            let similarity = mean_over(pairs, |pair| match align.similarity {
                Similarity::HiddenCosine => cosines(&pair.x, &pair.y, &pair.p),
                _ => {
                    let z = Matrix::from_fn(HIDDEN, TEACHER, |i, j| pair.p.at(j, i));
                    let dots = pair.x.times_transposed(&pair.y.times_transposed(&z));
                    Matrix::from_fn(N, M, |i, j| dots.at(i, j) / (HIDDEN as f64).sqrt())
                }
            });
            reference::softmax_cost(&similarity, align.temperature)
        }
    }
}

fn slow(pairs: &[Pair], align: &AlignConfig) -> f64 {
    let prior = Matrix::from_fn(N, M, |i, j| {
        align.position(false) * (i as f64 / N as f64 - j as f64 / M as f64).powi(2)
    });
    let solved = cost(pairs, align.solved(), align.kappa, align);
    let paid = cost(pairs, align.paid(), align.paid_kappa(), align);
    reference::objective(&solved, &paid, &prior, align)
}

/// Values and every gradient, of as many pairs of layers as there are.
fn check(pairs: &[Pair], align: &AlignConfig) {
    let found = loss(pairs, align).unwrap();
    let (value, expected) = (found.values.ot, slow(pairs, align));
    assert!(
        (value - expected).abs() < 1e-5,
        "{align:?}: {value} {expected}"
    );
    assert_eq!(found.grad_states.len(), pairs.len());
    for (k, gradient) in found.grad_states.iter().enumerate() {
        let with = |change: &dyn Fn(&mut Pair)| {
            let mut pairs = pairs.to_vec();
            change(&mut pairs[k]);
            0.7 * slow(&pairs, align)
        };
        let of_x = |x: &Matrix| with(&|pair| pair.x = x.clone());
        let of_p = |p: &Matrix| with(&|pair| pair.p = p.clone());
        for (found, expected) in [
            (
                &gradient.states,
                reference::central_differences(&pairs[k].x, 1e-5, of_x),
            ),
            (
                &gradient.projection,
                reference::central_differences(&pairs[k].p, 1e-5, of_p),
            ),
        ] {
            let distance = relative(&widened(found), &expected.data);
            assert!(distance < 1e-4, "{align:?}, pair {k}: {distance:e}");
        }
    }
}

#[test]
fn values_and_gradients_match_the_slow_form() {
    let (hidden, similarity) = (Cost::Hidden, Cost::SoftmaxSimilarity);
    let (cosine, dot) = (Similarity::HiddenCosine, Similarity::HiddenScaledDot);
    for (cost, similarity, loss) in [
        (similarity, cosine, AlignLoss::Entropic),
        (similarity, cosine, AlignLoss::Sharp),
        (similarity, dot, AlignLoss::Entropic),
        (similarity, dot, AlignLoss::Sharp),
        (hidden, cosine, AlignLoss::Entropic),
        (hidden, cosine, AlignLoss::Sharp),
        (hidden, cosine, AlignLoss::States),
        (hidden, cosine, AlignLoss::Kl),
        (hidden, dot, AlignLoss::Similarity),
        (similarity, dot, AlignLoss::States),
        (Cost::Kl, dot, AlignLoss::States),
    ] {
        let align = AlignConfig {
            cost,
            similarity,
            loss,
            through_plan: true,
            temperature: 0.4,
            epsilon: 0.3,
            position: Some(0.5),
            tolerance: 1e-9,
            ..AlignConfig::default()
        };
        check(&pairs(1, false), &align);
        check(&pairs(2, false), &align);
        let uses_means = [align.solved(), align.paid()].contains(&Cost::Hidden);
        if uses_means {
            check(&pairs(2, true), &align);
        }
    }
}

/// Nothing of it passes through logits, but whoever trains the head adds its gradient to others.
#[test]
fn a_head_that_states_alone_are_paid_beside_had_a_gradient_of_another_shape() {
    let align = AlignConfig {
        cost: Cost::Hidden,
        loss: AlignLoss::States,
        ..AlignConfig::default()
    };
    let (_, head) = loss_and_head(&pairs(1, true), &align).unwrap();
    assert_eq!(head.dims(), [SIZES.vocab, SIZES.d]);
    assert!(widened(&head).iter().all(|g| *g == 0.0));
}

/// Twice the same pair is that pair, whatever the weights; and a weight shifts the mean.
#[test]
fn the_cost_of_several_pairs_is_their_weighted_mean() {
    let align = AlignConfig {
        plan: PlanKind::Uniform,
        cost: Cost::Hidden,
        loss: AlignLoss::States,
        ..AlignConfig::default()
    };
    let value = |pairs: &[Pair]| loss(pairs, &align).unwrap().values.ot;
    let both = pairs(2, true);
    let (first, second) = (value(&both[..1]), value(&both[1..]));
    let expected = (first + 0.5 * second) / 1.5;
    assert!((value(&both) - expected).abs() < 1e-6);
    let twice = [both[0].clone(), both[0].clone()];
    assert!((value(&twice) - first).abs() < 1e-6);
}

/// A sequence of one target is its own mean, and its state beside that is zero; beside fitted means it is a state like others.
#[test]
fn the_only_state_of_a_sequence_has_a_gradient_beside_fitted_means_alone() {
    let [plain, other] = [3, 4].map(|seed| {
        let layers = [StateLayer::default()];
        let found = HiddenProjection::random(&layers, (TEACHER, HIDDEN), seed, &Device::Cpu);
        found.unwrap().remove(0)
    });
    let mean = |size: usize| Tensor::zeros(size, DType::F32, &Device::Cpu).unwrap();
    let fitted = other.with_means(&mean(TEACHER), &mean(HIDDEN)).unwrap();
    let one = Tensor::ones((1, HIDDEN), DType::F32, &Device::Cpu).unwrap();
    let targets = hidden_targets(vec![0.5; TEACHER], 1);
    for (projection, is_fitted) in [(&plain, false), (&fitted, true)] {
        let states = LayerStates {
            states: &one,
            projection,
        };
        let states = Comparisons::new(Comparison::Centered, &[states], &targets).unwrap();
        let cost = states.forward().unwrap();
        assert_eq!(widened(&cost) == [1.0], !is_fitted);
        let gradient = states.backward(&cost.ones_like().unwrap()).unwrap();
        let gradient = gradient[0].tensors().map(widened).concat();
        assert!(gradient.iter().all(|g| g.is_finite()));
        assert_eq!(gradient.iter().any(|g| *g != 0.0), is_fitted);
    }
}

#[test]
fn rows_without_hidden_states_are_refused_and_seeds_repeat() {
    let layers = [StateLayer::default()];
    let random = || {
        let found = HiddenProjection::random(&layers, (TEACHER, HIDDEN), 3, &Device::Cpu);
        found.unwrap().remove(0)
    };
    let (projection, again) = (random(), random());
    let values = |p: &HiddenProjection| widened(p.parameter().1.as_tensor());
    assert_eq!(values(&projection), values(&again));

    let one = pairs(1, false);
    let x = tensor(&one[0].x);
    let compared = |targets: &Targets| {
        let states = LayerStates {
            states: &x,
            projection: &projection,
        };
        Comparisons::new(Comparison::Cosine, &[states], targets).map(drop)
    };
    let with = case(&one).targets;
    compared(&with).unwrap();
    let mut without = with.clone();
    without.state = None;
    let message = compared(&without).unwrap_err().to_string();
    assert!(message.contains("--state"), "{message}");
    let mut other = with;
    other.state.as_mut().unwrap().rank = TEACHER + 1;
    assert!(compared(&other).is_err());
}
