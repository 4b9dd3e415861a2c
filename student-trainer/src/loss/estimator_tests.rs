//! Drawn rows: the loss against a slow form in f64, and unbiasedness over all draws of a small vocabulary.

use distill_proto::Estimator;

use super::reference::{self, Matrix, central_differences, logsumexp, softmax};
use super::testing::{Case, SQUARE, Sizes, relative, tensor, widened};
use super::*;

/// The case's rows as if 4 ids had been drawn 1, 2, 3 and 4 times, or the first two of them were a known head.
pub(super) fn drawn(estimator: Estimator) -> Case {
    let mut case = Case::new(SQUARE, 21);
    let head = if estimator == Estimator::HeadSampled {
        2
    } else {
        0
    };
    let count = |e: usize| if e % 4 < head { 0 } else { (e % 4 + 1) as u32 };
    case.targets.estimator = estimator;
    case.targets.counts = (0..case.targets.ids.len()).map(count).collect();
    let draws = |j: usize| case.targets.counts[case.targets.entries(j)].iter().sum();
    case.targets.draws = (0..SQUARE.m).map(draws).collect();
    case
}

/// Weights of row j by the definition.
fn weights(case: &Case, j: usize) -> Vec<f64> {
    let entries = case.targets.entries(j);
    let p = softmax(case.teacher.logits.row(j), 1.0);
    let ids = &case.targets.ids[entries.clone()];
    let counts = &case.targets.counts[entries];
    let draws: u32 = counts.iter().sum();
    let known = ids.iter().zip(counts).filter(|(_, c)| **c == 0);
    let head: f64 = known.map(|(&id, _)| p[id as usize]).sum();
    let weight = |(&id, &count): (&u32, &u32)| match count {
        0 => p[id as usize],
        _ => (1.0 - head) * f64::from(count) / f64::from(draws),
    };
    ids.iter().zip(counts).map(weight).collect()
}

/// `sum_v w_jv (ln p_jv - ln q_iv)`.
fn estimate(case: &Case, x: &Matrix, i: usize, j: usize) -> f64 {
    let ids = &case.targets.ids[case.targets.entries(j)];
    let (y, z) = (case.teacher.logits.row(j), x.row(i));
    let (lse_y, lse_z) = (logsumexp(y), logsumexp(z));
    let terms = weights(case, j).into_iter().zip(ids);
    terms
        .map(|(w, &id)| w * (y[id as usize] - lse_y - z[id as usize] + lse_z))
        .sum()
}

fn slow(case: &Case, hidden: &Matrix, config: &LossConfig) -> f64 {
    let x = hidden.times_transposed(&case.head);
    let kl = (0..SQUARE.n).map(|i| estimate(case, &x, i, i)).sum::<f64>() / SQUARE.n as f64;
    let cost = match config.align.cost {
        Cost::Kl => Matrix::from_fn(SQUARE.n, SQUARE.m, |i, j| {
            estimate(case, &x, i, j) / config.align.kappa
        }),
        _ => {
            let s = Matrix::from_fn(SQUARE.n, SQUARE.m, |i, j| {
                let (p, q) = (
                    softmax(case.teacher.logits.row(j), 1.0),
                    softmax(x.row(i), 1.0),
                );
                let ids = &case.targets.ids[case.targets.entries(j)];
                let terms = weights(case, j).into_iter().zip(ids);
                terms
                    .map(|(w, &id)| w * (q[id as usize] / p[id as usize]).sqrt())
                    .sum()
            });
            reference::softmax_cost(&s, config.align.temperature)
        }
    };
    let prior = Matrix::from_fn(SQUARE.n, SQUARE.m, |i, j| {
        config.align.position(false) * ((i as f64 - j as f64) / SQUARE.n as f64).powi(2)
    });
    let ot = reference::objective(&cost, &cost, &prior, &config.align);
    config.kl_weight * kl + config.ot_weight * ot
}

#[test]
fn losses_of_drawn_rows_match_the_slow_form() {
    for estimator in [Estimator::Sampled, Estimator::HeadSampled] {
        for (cost, similarity) in [
            (Cost::Kl, Similarity::Cosine),
            (Cost::SoftmaxSimilarity, Similarity::Bhattacharyya),
        ] {
            let case = drawn(estimator);
            let config = LossConfig {
                ce_weight: 0.0,
                kl_weight: 0.6,
                ot_weight: 0.5,
                align: AlignConfig {
                    cost,
                    similarity,
                    epsilon: 0.3,
                    position: Some(0.5),
                    tolerance: 1e-9,
                    ..AlignConfig::default()
                },
                ..LossConfig::default()
            };
            let loss = head_loss(
                &tensor(&case.hidden),
                &case.labels,
                &case.targets,
                &case.geometry(),
                &config,
            )
            .unwrap();
            let expected = slow(&case, &case.hidden, &config);
            assert!(
                (loss.values.total - expected).abs() < 1e-5 * expected.abs().max(0.1),
                "{estimator:?} {cost:?}: {} {expected}",
                loss.values.total
            );
            let gradient = central_differences(&case.hidden, 1e-5, |h| slow(&case, h, &config));
            let distance = relative(&widened(&loss.grad_hidden), &gradient.data);
            assert!(distance < 1e-4, "{estimator:?} {cost:?}: {distance:e}");
        }
    }
}

/// Over every possible outcome of one draw, weighted by its probability, the gradient is that of the full KL.
#[test]
fn the_gradient_of_drawn_rows_is_unbiased() {
    for (estimator, head) in [(Estimator::Sampled, 0), (Estimator::HeadSampled, 3)] {
        let case = Case::new(Sizes { k: 13, ..SQUARE }, 22);
        let config = LossConfig {
            ce_weight: 0.0,
            ot_weight: 0.0,
            ..LossConfig::default()
        };
        let gradient = |targets: &Targets| {
            let (h, g) = (tensor(&case.hidden), case.geometry());
            let loss = head_loss(&h, &case.labels, targets, &g, &config).unwrap();
            widened(&loss.grad_hidden)
        };
        let full = gradient(&case.targets);
        // Rows are independent, so one row's gradient at a time: row 0 here.
        let d = SQUARE.d;
        let p = softmax(case.teacher.logits.row(0), 1.0);
        let head_mass: f64 = p[..head].iter().sum();
        let mut mean = vec![0.0; d];
        for (v, share) in p.iter().enumerate().skip(head) {
            let mut targets = case.targets.clone();
            targets.estimator = estimator;
            let keep = |id: usize| id < head || id == v;
            let ids: Vec<u32> = (0..SQUARE.vocab)
                .filter(|&id| keep(id))
                .map(|id| id as u32)
                .collect();
            targets.starts = (0..=SQUARE.m).map(|j| j * ids.len()).collect();
            targets.draws = vec![1; SQUARE.m];
            targets.counts = ids
                .iter()
                .map(|&id| u32::from(id as usize == v))
                .cycle()
                .take(SQUARE.m * ids.len())
                .collect();
            let logits = |j: usize| ids.iter().map(move |&id| (j, id as usize));
            targets.logits = (0..SQUARE.m)
                .flat_map(logits)
                .map(|(j, id)| case.teacher.logits.at(j, id) as f32)
                .collect();
            targets.ids = ids
                .iter()
                .copied()
                .cycle()
                .take(SQUARE.m * ids.len())
                .collect();
            let share = share / (1.0 - head_mass);
            for (mean, g) in mean.iter_mut().zip(&gradient(&targets)[..d]) {
                *mean += share * g;
            }
        }
        let distance = relative(&mean, &full[..d]);
        assert!(distance < 1e-4, "{estimator:?}: {distance:e}");
    }
}
