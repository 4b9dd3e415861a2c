//! Transport between hidden states against a slow form in f64, gradients by central differences.

use candle_core::Device;

use super::super::config::{AlignConfig, AlignLoss, Cost, LossConfig, Similarity};
use super::super::geometry::HeadGeometry;
use super::super::head::{HeadLoss, Student, head_loss};
use super::super::reference::{self, Matrix};
use super::super::testing::{Random, hidden_targets, relative, tensor, widened};
use super::*;

const N: usize = 5;
const M: usize = 7;
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

fn targets(states: &Matrix) -> Targets {
    hidden_targets(states.data.iter().map(|&x| x as f32).collect(), M)
}

/// The whole loss of a student that is compared by its states alone.
fn loss(x: &Matrix, y: &Matrix, p: &Matrix, align: &AlignConfig) -> Result<HeadLoss> {
    let config = LossConfig {
        ce_weight: 0.0,
        kl_weight: 0.0,
        ot_weight: 0.7,
        align: align.clone(),
        ..LossConfig::default()
    };
    let projection = HiddenProjection::from_tensor(&tensor(p))?;
    let (hidden, states) = (Tensor::zeros((N, 1), DType::F32, &Device::Cpu)?, tensor(x));
    let geometry = HeadGeometry::new(&Tensor::ones((1, 1), DType::F32, &Device::Cpu)?, None)?;
    let student = Student {
        hidden: &hidden,
        states: Some((&states, &projection)),
    };
    head_loss(student, &[0; N], &targets(y), &geometry, &config)
}

fn slow(x: &Matrix, y: &Matrix, p: &Matrix, align: &AlignConfig) -> f64 {
    let transposed = Matrix::from_fn(p.columns, p.rows, |i, j| p.at(j, i));
    let centered = |rows: &Matrix| {
        let mean = |k| (0..rows.rows).map(|i| rows.at(i, k)).sum::<f64>() / rows.rows as f64;
        Matrix::from_fn(rows.rows, rows.columns, |i, k| rows.at(i, k) - mean(k))
    };
    let norm = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>().sqrt();
    let cosines = |x: &Matrix, y: &Matrix| {
        let z = y.times_transposed(&transposed);
        let dots = x.times_transposed(&z);
        Matrix::from_fn(N, M, |i, j| {
            dots.at(i, j) / (norm(x.row(i)) * norm(z.row(j)))
        })
    };
    let similarity = || match align.similarity {
        Similarity::HiddenCosine => cosines(x, y),
        _ => {
            let dots = x.times_transposed(&y.times_transposed(&transposed));
            Matrix::from_fn(N, M, |i, j| dots.at(i, j) / (HIDDEN as f64).sqrt())
        }
    };
    let cost = |kind: Cost| match kind {
        Cost::Hidden => {
            let cosines = cosines(&centered(x), &centered(y));
            Matrix::from_fn(N, M, |i, j| 1.0 - cosines.at(i, j))
        }
        _ => reference::softmax_cost(&similarity(), align.temperature),
    };
    let prior = Matrix::from_fn(N, M, |i, j| {
        align.position(false) * (i as f64 / N as f64 - j as f64 / M as f64).powi(2)
    });
    reference::objective(&cost(align.solved()), &cost(align.paid()), &prior, align)
}

#[test]
fn values_and_gradients_match_the_slow_form() {
    let (hidden, similarity) = (Cost::Hidden, Cost::SoftmaxSimilarity);
    let (cosine, dot) = (Similarity::HiddenCosine, Similarity::HiddenScaledDot);
    for (cost, similarity, loss_kind) in [
        (similarity, cosine, AlignLoss::Entropic),
        (similarity, cosine, AlignLoss::Sharp),
        (similarity, dot, AlignLoss::Entropic),
        (similarity, dot, AlignLoss::Sharp),
        (hidden, cosine, AlignLoss::Entropic),
        (hidden, cosine, AlignLoss::Sharp),
        (hidden, cosine, AlignLoss::States),
        (hidden, dot, AlignLoss::Similarity),
        (similarity, dot, AlignLoss::States),
    ] {
        let align = AlignConfig {
            cost,
            similarity,
            loss: loss_kind,
            through_plan: true,
            temperature: 0.4,
            epsilon: 0.3,
            position: Some(0.5),
            tolerance: 1e-9,
            ..AlignConfig::default()
        };
        let mut random = Random::new(5);
        let x = matrix(N, HIDDEN, &mut random);
        let y = matrix(M, TEACHER, &mut random);
        let p = matrix(TEACHER, HIDDEN, &mut random);
        let found = loss(&x, &y, &p, &align).unwrap();
        let expected = slow(&x, &y, &p, &align);
        let value = found.values.ot;
        assert!(
            (value - expected).abs() < 1e-5,
            "{align:?}: {value} {expected}"
        );
        let (grad_x, grad_p) = found.grad_states.unwrap();
        let weighted = |m: Matrix| m.data.iter().map(|g| 0.7 * g).collect::<Vec<_>>();
        let dx = reference::central_differences(&x, 1e-5, |x| slow(x, &y, &p, &align));
        let distance = relative(&widened(&grad_x), &weighted(dx));
        assert!(distance < 1e-4, "{align:?}: {distance:e}");
        let dp = reference::central_differences(&p, 1e-5, |p| slow(&x, &y, p, &align));
        let distance = relative(&widened(&grad_p), &weighted(dp));
        assert!(distance < 1e-4, "{align:?}: {distance:e}");
    }
}

/// A sequence of one target is its own mean, and its state beside that is zero.
#[test]
fn the_only_state_of_a_sequence_has_no_gradient_and_no_nan() {
    let projection = HiddenProjection::new(TEACHER, HIDDEN, 3, &Device::Cpu).unwrap();
    let one = Tensor::ones((1, HIDDEN), DType::F32, &Device::Cpu).unwrap();
    let targets = hidden_targets(vec![0.5; TEACHER], 1);
    let student = Some((&one, &projection));
    let states = Projected::new(Comparison::Centered, student, &targets).unwrap();
    let cost = states.forward().unwrap();
    assert_eq!(widened(&cost), [1.0]);
    let (x, p) = states.backward(&cost).unwrap();
    assert!(widened(&x).iter().chain(&widened(&p)).all(|g| *g == 0.0));
}

#[test]
fn rows_without_hidden_states_are_refused_and_seeds_repeat() {
    let projection = HiddenProjection::new(TEACHER, HIDDEN, 3, &Device::Cpu).unwrap();
    let again = HiddenProjection::new(TEACHER, HIDDEN, 3, &Device::Cpu).unwrap();
    let values = |p: &HiddenProjection| widened(p.parameter().1.as_tensor());
    assert_eq!(values(&projection), values(&again));

    let mut random = Random::new(6);
    let (x, y) = (
        tensor(&matrix(N, HIDDEN, &mut random)),
        matrix(M, TEACHER, &mut random),
    );
    let states = |targets: &Targets| {
        let states = Projected::new(Comparison::Cosine, Some((&x, &projection)), targets);
        states.map(drop)
    };
    states(&targets(&y)).unwrap();
    let mut without = targets(&y);
    without.state = None;
    let message = states(&without).unwrap_err().to_string();
    assert!(message.contains("--state"), "{message}");
    let mut other = targets(&y);
    other.state.as_mut().unwrap().rank = TEACHER + 1;
    assert!(states(&other).is_err());
}
