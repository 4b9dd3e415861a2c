//! The way that rows of logits take on a card, their kernels run by the emulator, held against the CPU's own way.

use distill_kernels::HEAD;
use distill_proto::Estimator;

use super::estimator_tests::drawn;
use super::testing::{Case, SQUARE, Sizes, emulate, relative, tensor, transports, widened};
use super::tests::{ALL_KEPT, LONGER_TEACHER, only_ot, three_parts};
use super::*;

/// f32 sums in another order, carried through a solved plan.
const CLOSE: f64 = 2e-5;

fn on_card(geometry: HeadGeometry) -> HeadGeometry {
    let geometry = geometry.with_rows_on_card(|x, out, calls| emulate(&HEAD, x, out, calls));
    geometry.unwrap()
}

struct Outcome {
    loss: HeadLoss,
    grad_head: Option<Vec<f64>>,
    values: LossValues,
}

fn run(case: &Case, geometry: &HeadGeometry, config: &LossConfig, with_head: bool) -> Outcome {
    let hidden = tensor(&case.hidden);
    let (labels, targets) = (&case.labels, &case.targets);
    let values = head_values(&hidden, labels, Some(targets), geometry, config).unwrap();
    if with_head {
        let (loss, grad_head) =
            head_loss_with_head(&hidden, labels, Some(targets), geometry, config).unwrap();
        let grad_head = Some(widened(&grad_head));
        return Outcome {
            loss,
            grad_head,
            values,
        };
    }
    Outcome {
        loss: head_loss(&hidden, labels, targets, geometry, config).unwrap(),
        grad_head: None,
        values,
    }
}

fn compare(case: &Case, config: &LossConfig) {
    let with_head = !config.needs_state();
    let host = run(case, &case.geometry(), config, with_head);
    let device = run(case, &on_card(case.geometry()), config, with_head);
    let close = |a: f64, b: f64| (a - b).abs() <= CLOSE * b.abs().max(0.1);
    for (a, b) in [
        (device.loss.values.total, host.loss.values.total),
        (device.loss.values.ce, host.loss.values.ce),
        (device.loss.values.kl, host.loss.values.kl),
        (device.loss.values.reverse_kl, host.loss.values.reverse_kl),
        (device.loss.values.jsd, host.loss.values.jsd),
        (device.loss.values.ot, host.loss.values.ot),
        (device.values.total, host.values.total),
        (device.values.total, device.loss.values.total),
    ] {
        assert!(close(a, b), "{config:?}: {a} {b}");
    }
    let distance = relative(
        &widened(&device.loss.grad_hidden),
        &widened(&host.loss.grad_hidden),
    );
    assert!(distance < CLOSE, "{config:?}: {distance:e}");
    if let (Some(device), Some(host)) = (device.grad_head, host.grad_head) {
        let distance = relative(&device, &host);
        assert!(distance < CLOSE, "{config:?}: head {distance:e}");
    }
}

/// Every divergence, and all of them, at two temperatures, with and without cross-entropy and transport.
fn row_losses() -> Vec<LossConfig> {
    let mut all = Vec::new();
    for weights in [
        [1.0, 0.0, 0.0],
        [0.0, 1.0, 0.0],
        [0.0, 0.0, 1.0],
        [0.2, 0.3, 0.4],
    ] {
        for kl_temperature in [1.0, 2.0] {
            for (ce_weight, teacher_weight, ot_weight) in
                [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.3, 0.9, 0.5)]
            {
                let [kl_weight, reverse_kl_weight, jsd_weight] =
                    weights.map(|weight| teacher_weight * weight);
                all.push(LossConfig {
                    ce_weight,
                    kl_weight,
                    reverse_kl_weight,
                    jsd_weight,
                    ot_weight,
                    kl_temperature,
                    jsd_beta: 0.3,
                    // Chunks of two rows leave one of one.
                    chunk_rows: 2,
                    ..three_parts()
                });
            }
        }
    }
    all
}

#[test]
fn cross_entropy_and_divergences_are_the_host_s() {
    for sizes in [
        SQUARE,
        ALL_KEPT,
        Sizes { k: 12, ..SQUARE },
        Sizes { k: 1, ..SQUARE },
    ] {
        for config in row_losses() {
            compare(&Case::new(sizes, 31), &config);
        }
    }
}

#[test]
fn transports_are_the_host_s() {
    for ot in transports() {
        compare(&Case::new(LONGER_TEACHER, 32), &only_ot(ot.clone()));
        let config = LossConfig {
            align: ot,
            chunk_rows: 3,
            kl_temperature: 2.0,
            ..three_parts()
        };
        compare(&Case::new(SQUARE, 33), &config);
    }
}

#[test]
fn drawn_rows_are_the_host_s() {
    for estimator in [Estimator::Sampled, Estimator::HeadSampled] {
        let case = drawn(estimator);
        compare(&case, &three_parts());
        let config = LossConfig {
            align: AlignConfig {
                cost: Cost::SoftmaxSimilarity,
                similarity: Similarity::Bhattacharyya,
                ..three_parts().align
            },
            chunk_rows: 2,
            ..three_parts()
        };
        compare(&case, &config);
    }
}

/// Rows of another tokenizer: of different widths, and not beside every position.
#[test]
fn ragged_rows_and_positions_without_a_partner_are_the_host_s() {
    let mut case = Case::new(LONGER_TEACHER, 34);
    let targets = &mut case.targets;
    // Row j loses its last j mod 3 entries.
    let kept =
        |entry: &usize| entry % LONGER_TEACHER.k < LONGER_TEACHER.k - entry / LONGER_TEACHER.k % 3;
    let entries: Vec<usize> = (0..targets.ids.len()).filter(kept).collect();
    targets.ids = entries.iter().map(|&entry| targets.ids[entry]).collect();
    targets.logits = entries.iter().map(|&entry| targets.logits[entry]).collect();
    let width = |j: usize| LONGER_TEACHER.k - j % 3;
    targets.starts = (0..=LONGER_TEACHER.m)
        .map(|rows| (0..rows).map(width).sum())
        .collect();
    assert_eq!(targets.starts[LONGER_TEACHER.m], targets.ids.len());
    let places = |count: usize| (0..count).map(|i| i as f64 / count as f64).collect();
    targets.alignment = Some(Alignment {
        pairs: vec![Some(0), None, Some(2), Some(4), None],
        student_places: places(LONGER_TEACHER.n),
        teacher_places: places(LONGER_TEACHER.m),
        labelled: vec![true, false, true, true, false],
        ..Alignment::default()
    });
    // A label that is kept, one that is not, and a row without a partner, each in a chunk with others.
    case.labels[2] = targets.ids[targets.starts[2]];
    for chunk_rows in [1, 2, 8] {
        for config in row_losses() {
            compare(
                &case,
                &LossConfig {
                    chunk_rows,
                    ..config
                },
            );
        }
    }
}

#[test]
fn a_half_precision_head_and_numbers_that_are_not_finite_fare_as_on_the_host() {
    let case = Case::new(SQUARE, 35);
    let head = tensor(&case.head);
    let head = head.to_dtype(candle_core::DType::BF16).unwrap();
    let geometry = HeadGeometry::new(&head, None).unwrap();
    let host = run(&case, &geometry, &three_parts(), true);
    let geometry = on_card(geometry);
    let device = run(&case, &geometry, &three_parts(), true);
    assert!((device.loss.values.total / host.loss.values.total - 1.0).abs() < CLOSE);
    let (a, b) = (device.loss.grad_hidden, host.loss.grad_hidden);
    assert!(relative(&widened(&a), &widened(&b)) < CLOSE);

    let bhattacharyya = AlignConfig {
        cost: Cost::SoftmaxSimilarity,
        similarity: Similarity::Bhattacharyya,
        ..AlignConfig::default()
    };
    for ot in [AlignConfig::default(), bhattacharyya] {
        for bad in [f64::NAN, f64::INFINITY, 3e38] {
            let mut case = Case::new(SQUARE, 35);
            case.hidden.data[8] = bad;
            let (hidden, ot) = (tensor(&case.hidden), ot.clone());
            let config = LossConfig {
                align: ot,
                ..three_parts()
            };
            let loss = |geometry| {
                let loss = head_loss(&hidden, &case.labels, &case.targets, geometry, &config);
                loss.unwrap_err()
            };
            let (device, host) = (loss(&geometry), loss(&case.geometry()));
            assert!(matches!(host, LossError::NonFinite { .. }), "{host:?}");
            assert_eq!(device.to_string(), host.to_string());
        }
    }
}
