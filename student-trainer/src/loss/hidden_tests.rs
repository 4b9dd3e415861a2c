//! Transport between hidden states against a slow form in f64, gradients by central differences.

use candle_core::Device;

use super::super::config::Objective;
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

fn slow(x: &Matrix, y: &Matrix, p: &Matrix, config: &LossConfig) -> f64 {
    let transposed = Matrix::from_fn(p.columns, p.rows, |i, j| p.at(j, i));
    let z = y.times_transposed(&transposed);
    let norm = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>().sqrt();
    let dots = x.times_transposed(&z);
    let s = Matrix::from_fn(N, M, |i, j| match config.hidden_similarity {
        Similarity::Cosine => dots.at(i, j) / (norm(x.row(i)) * norm(z.row(j))),
        _ => dots.at(i, j) / (HIDDEN as f64).sqrt(),
    });
    let cost = reference::softmax_cost(&s, config.hidden_temperature);
    let prior = Matrix::from_fn(N, M, |i, j| {
        config.ot.position_prior * (i as f64 / N as f64 - j as f64 / M as f64).powi(2)
    });
    reference::objective(&cost, &cost, &prior, &config.ot)
}

#[test]
fn values_and_gradients_match_the_slow_form() {
    for similarity in [Similarity::ScaledDot, Similarity::Cosine] {
        for objective in [Objective::Entropic, Objective::Sharp] {
            let config = LossConfig {
                hidden_weight: 0.7,
                hidden_similarity: similarity,
                hidden_temperature: 0.4,
                ot: OtConfig {
                    objective,
                    epsilon: 0.3,
                    position_prior: 0.5,
                    tolerance: 1e-9,
                    ..OtConfig::default()
                },
                ..LossConfig::default()
            };
            let mut random = Random::new(5);
            let x = matrix(N, HIDDEN, &mut random);
            let y = matrix(M, TEACHER, &mut random);
            let p = matrix(TEACHER, HIDDEN, &mut random);
            let projection = HiddenProjection::from_tensor(&tensor(&p)).unwrap();
            let loss = projection.loss(&tensor(&x), &targets(&y), &config).unwrap();
            let expected = slow(&x, &y, &p, &config);
            assert!(
                (loss.value - expected).abs() < 1e-5,
                "{} {expected}",
                loss.value
            );
            let weighted = |m: Matrix| m.data.iter().map(|g| 0.7 * g).collect::<Vec<_>>();
            let dx = reference::central_differences(&x, 1e-5, |x| slow(x, &y, &p, &config));
            assert!(relative(&widened(&loss.grad_hidden), &weighted(dx)) < 1e-4);
            let dp = reference::central_differences(&p, 1e-5, |p| slow(&x, &y, p, &config));
            assert!(relative(&widened(&loss.grad_projection), &weighted(dp)) < 1e-4);
        }
    }
}

#[test]
fn rows_without_hidden_states_are_refused_and_seeds_repeat() {
    let projection = HiddenProjection::new(TEACHER, HIDDEN, 3, &Device::Cpu).unwrap();
    let again = HiddenProjection::new(TEACHER, HIDDEN, 3, &Device::Cpu).unwrap();
    let values = |p: &HiddenProjection| widened(p.parameter().1.as_tensor());
    assert_eq!(values(&projection), values(&again));

    let mut random = Random::new(6);
    let (x, y) = (
        matrix(N, HIDDEN, &mut random),
        matrix(M, TEACHER, &mut random),
    );
    let mut without = targets(&y);
    without.state = None;
    let config = LossConfig::default();
    let message = projection.loss(&tensor(&x), &without, &config).unwrap_err();
    assert!(message.to_string().contains("--state"), "{message}");
    let mut other = targets(&y);
    other.state.as_mut().unwrap().rank = TEACHER + 1;
    assert!(projection.loss(&tensor(&x), &other, &config).is_err());
}
