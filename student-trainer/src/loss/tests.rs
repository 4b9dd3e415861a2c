//! The fused head and the dense form against the f64 reference: values, and gradients by central differences.

use super::testing::{Case, SQUARE, Sizes, relative, tensor, transports, widened};
use super::*;

pub(super) const ALL_KEPT: Sizes = Sizes { k: 13, ..SQUARE };
pub(super) const LONGER_TEACHER: Sizes = Sizes { m: 7, ..SQUARE };

/// f32 arithmetic on sums of a few dozen terms.
const VALUE: f64 = 1e-5;
const GRADIENT: f64 = 1e-4;

fn check(sizes: Sizes, config: &LossConfig) {
    let case = Case::new(sizes, 11);
    let loss = head_loss(
        &tensor(&case.hidden),
        &case.labels,
        &case.targets,
        &case.geometry(),
        config,
    )
    .unwrap();
    assert!(
        loss.values.report.convergence.converged || config.ot_weight == 0.0,
        "{config:?} {:?}",
        loss.values.report
    );
    let expected = case.value(&case.hidden, config);
    assert!(
        (loss.values.total - expected).abs() <= VALUE * expected.abs().max(0.1),
        "{config:?}: {} against {expected}",
        loss.values.total
    );
    let slow = reference::central_differences(&case.hidden, 1e-5, |h| case.value(h, config));
    let distance = relative(&widened(&loss.grad_hidden), &slow.data);
    assert!(
        distance < GRADIENT,
        "{config:?}: gradient off by {distance:e}"
    );

    let values = head_values(
        &tensor(&case.hidden),
        &case.labels,
        Some(&case.targets),
        &case.geometry(),
        config,
    )
    .unwrap();
    assert_eq!(values.total, loss.values.total);
}

#[test]
fn the_head_s_own_gradient_matches_the_reference() {
    for ot in transports() {
        let config = LossConfig {
            chunk_rows: 2,
            align: ot,
            ..three_parts()
        };
        let case = Case::new(SQUARE, 13);
        let geometry = HeadGeometry::new(&tensor(&case.head), None).unwrap();
        let run = || {
            let hidden = tensor(&case.hidden);
            head_loss_with_head(
                &hidden,
                &case.labels,
                Some(&case.targets),
                &geometry,
                &config,
            )
        };
        if config.needs_state() {
            let message = run().unwrap_err().to_string();
            assert!(message.contains("full-parameter"), "{message}");
            continue;
        }
        let (loss, grad_head) = run().unwrap();
        let value = |head: &reference::Matrix| {
            let x = case.hidden.times_transposed(head);
            reference::total(&x, &case.teacher, &case.labels, &config)
        };
        let slow = reference::central_differences(&case.head, 1e-5, value);
        let distance = relative(&widened(&grad_head), &slow.data);
        assert!(
            distance < GRADIENT,
            "{config:?}: gradient off by {distance:e}"
        );
        let slow = reference::central_differences(&case.hidden, 1e-5, |h| case.value(h, &config));
        assert!(relative(&widened(&loss.grad_hidden), &slow.data) < GRADIENT);
    }
}

#[test]
fn a_head_that_no_term_reaches_has_a_gradient_of_its_own_shape() {
    let case = Case::new(SQUARE, 13);
    let geometry = HeadGeometry::new(&tensor(&case.head), None).unwrap();
    let config = LossConfig {
        ce_weight: 0.0,
        kl_weight: 0.0,
        ..LossConfig::default()
    };
    let hidden = tensor(&case.hidden);
    let (labels, targets) = (&case.labels, Some(&case.targets));
    let (_, head) = head_loss_with_head(&hidden, labels, targets, &geometry, &config).unwrap();
    assert_eq!(head.dims(), tensor(&case.head).dims());
    assert!(widened(&head).iter().all(|&value| value == 0.0));
}

#[test]
fn the_plan_to_look_at_has_uniform_marginals() {
    let case = Case::new(LONGER_TEACHER, 14);
    let config = LossConfig {
        kl_weight: 0.0,
        align: AlignConfig {
            epsilon: 0.2,
            position: Some(0.0),
            tolerance: 1e-7,
            ..AlignConfig::default()
        },
        ..LossConfig::default()
    };
    let (hidden, geometry) = (tensor(&case.hidden), case.geometry());
    let plan = transport_plan(&hidden, &case.targets, &geometry, &config).unwrap();
    let (n, m) = (LONGER_TEACHER.n, LONGER_TEACHER.m);
    assert_eq!(plan.len(), n * m);
    for row in plan.chunks(m) {
        assert!((row.iter().sum::<f32>() - 1.0 / n as f32).abs() < 1e-5);
    }
    let column: f32 = plan.iter().step_by(m).sum();
    assert!((column - 1.0 / m as f32).abs() < 1e-5);
    assert!(plan.iter().any(|&t| t > 1.5 / (n * m) as f32));
}

fn check_dense(sizes: Sizes, config: &LossConfig) {
    let case = Case::new(sizes, 12);
    let x = case.hidden.times_transposed(&case.head);
    let top_k = (sizes.k < sizes.vocab).then_some(sizes.k);
    let loss = dense_loss(
        &tensor(&x),
        &tensor(&case.teacher.logits),
        Some(&case.labels),
        top_k,
        config,
    )
    .unwrap();
    // The dense side sees X in f32.
    let x = reference::Matrix {
        data: widened(&tensor(&x)),
        ..x
    };
    let value = |x: &reference::Matrix| reference::total(x, &case.teacher, &case.labels, config);
    let expected = value(&x);
    assert!(
        (loss.values.total - expected).abs() <= VALUE * expected.abs().max(0.1),
        "{config:?}: {} against {expected}",
        loss.values.total
    );
    let slow = reference::central_differences(&x, 1e-5, value);
    let distance = relative(&widened(&loss.grad_total), &slow.data);
    assert!(
        distance < GRADIENT,
        "{config:?}: gradient off by {distance:e}"
    );
    if config.ce_weight + config.divergence_weight() == 0.0 {
        let unweighted = slow.data.iter().map(|g| g / config.ot_weight);
        let distance = relative(
            &widened(&loss.grad_ot.unwrap()),
            &unweighted.collect::<Vec<_>>(),
        );
        assert!(
            distance < GRADIENT,
            "{config:?}: gradient of OT off by {distance:e}"
        );
    }
}

/// Cross-entropy, KL and transport together.
pub(super) fn three_parts() -> LossConfig {
    LossConfig {
        ot_weight: 0.5,
        ..LossConfig::default()
    }
}

pub(super) fn only_ot(ot: AlignConfig) -> LossConfig {
    LossConfig {
        ce_weight: 0.0,
        kl_weight: 0.0,
        ot_weight: 0.7,
        align: ot,
        chunk_rows: 3,
        ..LossConfig::default()
    }
}

#[test]
fn transport_from_hidden_states_matches_the_reference() {
    for ot in transports() {
        check(SQUARE, &only_ot(ot.clone()));
        check(LONGER_TEACHER, &only_ot(ot));
    }
}

#[test]
fn transport_from_dense_logits_matches_the_reference() {
    for ot in transports() {
        check_dense(ALL_KEPT, &only_ot(ot.clone()));
        if !ot.needs_logits() {
            check_dense(LONGER_TEACHER, &only_ot(ot));
        }
    }
}

#[test]
fn cross_entropy_and_kl_match_the_reference() {
    for sizes in [
        SQUARE,
        ALL_KEPT,
        Sizes { k: 12, ..SQUARE },
        Sizes { k: 1, ..SQUARE },
    ] {
        for kl_temperature in [1.0, 2.0] {
            for (ce_weight, kl_weight, reverse_kl_weight, jsd_weight) in [
                (1.0, 0.0, 0.0, 0.0),
                (0.0, 1.0, 0.0, 0.0),
                (0.0, 0.0, 1.0, 0.0),
                (0.0, 0.0, 0.0, 1.0),
                (0.0, 0.5, 0.5, 0.0),
                (0.3, 0.9, 0.0, 0.0),
                (0.3, 0.2, 0.3, 0.4),
            ] {
                let config = LossConfig {
                    ce_weight,
                    kl_weight,
                    reverse_kl_weight,
                    jsd_weight,
                    jsd_beta: 0.3,
                    kl_temperature,
                    ot_weight: 0.0,
                    chunk_rows: 2,
                    ..three_parts()
                };
                check(sizes, &config);
                check_dense(sizes, &config);
            }
        }
    }
}

#[test]
fn the_whole_loss_matches_the_reference() {
    check(SQUARE, &LossConfig::default());
    let config = three_parts();
    check(SQUARE, &config);
    check(ALL_KEPT, &config);
    check_dense(SQUARE, &config);
    // At another temperature CE and the transport's softmax part are at 1 while KL is not.
    let config = LossConfig {
        kl_temperature: 2.0,
        ..config
    };
    check(SQUARE, &config);
    check_dense(ALL_KEPT, &config);
}

#[test]
fn cross_entropy_alone_needs_no_teacher() {
    let case = Case::new(SQUARE, 13);
    let geometry = HeadGeometry::new(&tensor(&case.head), None).unwrap();
    let values = head_values(
        &tensor(&case.hidden),
        &case.labels,
        None,
        &geometry,
        &three_parts(),
    )
    .unwrap();
    let x = case.hidden.times_transposed(&case.head);
    let expected = reference::cross_entropy(&x, &case.labels);
    assert!((values.ce / expected - 1.0).abs() < VALUE);
}

#[test]
fn the_literal_preset_is_uninformative_and_says_so() {
    let case = Case::new(
        Sizes {
            n: 40,
            m: 40,
            vocab: 60,
            ..SQUARE
        },
        14,
    );
    let loss = head_loss(
        &tensor(&case.hidden),
        &case.labels,
        &case.targets,
        &case.geometry(),
        &LossConfig::literal(),
    )
    .unwrap();
    assert!(loss.values.report.uninformative);
    let expected = 1.0 - 1.0 / 40.0;
    assert!((loss.values.ot - expected).abs() < 0.01 * expected);
    let sharp = LossConfig {
        align: AlignConfig {
            cost: Cost::SoftmaxSimilarity,
            temperature: 0.2,
            ..AlignConfig::default()
        },
        ..three_parts()
    };
    let case = Case::new(SQUARE, 14);
    let (h, g) = (tensor(&case.hidden), case.geometry());
    let loss = head_loss(&h, &case.labels, &case.targets, &g, &sharp).unwrap();
    assert!(!loss.values.report.uninformative);
}

#[test]
fn nan_in_any_input_is_an_error_that_names_it() {
    let good = Case::new(SQUARE, 15);
    let run = |case: &Case, config: &LossConfig| {
        let (h, g) = (tensor(&case.hidden), case.geometry());
        head_loss(&h, &case.labels, &case.targets, &g, config).map(|loss| loss.values.total)
    };
    let cosine = LossConfig {
        align: AlignConfig {
            cost: Cost::SoftmaxSimilarity,
            ..AlignConfig::default()
        },
        ..three_parts()
    };
    let bhattacharyya = LossConfig {
        align: AlignConfig {
            similarity: Similarity::Bhattacharyya,
            ..cosine.align.clone()
        },
        ..three_parts()
    };
    let ce = LossConfig {
        kl_weight: 0.0,
        ot_weight: 0.0,
        ..three_parts()
    };
    for config in [three_parts(), cosine, bhattacharyya, ce] {
        assert!(run(&good, &config).is_ok());
        for bad in [f64::NAN, f64::INFINITY, 3e38] {
            let mut case = Case::new(SQUARE, 15);
            case.hidden.data[8] = bad;
            match run(&case, &config) {
                Err(LossError::NonFinite { .. }) => {}
                other => panic!("{bad}: {other:?}"),
            }
        }
    }
    let mut case = Case::new(SQUARE, 15);
    case.targets.logits[4] = f32::NAN;
    assert!(run(&case, &three_parts()).is_err());
    let mut case = Case::new(SQUARE, 15);
    case.targets.ids[3] = 13;
    assert!(run(&case, &three_parts()).is_err());
}

#[test]
fn what_the_teacher_cannot_feed_is_refused_with_the_remedy() {
    let mut case = Case::new(SQUARE, 16);
    let refusal = |case: &Case, config: &LossConfig| {
        let (h, g) = (tensor(&case.hidden), case.geometry());
        let error = head_loss(&h, &case.labels, &case.targets, &g, config).unwrap_err();
        error.to_string()
    };
    let at_three = LossConfig {
        kl_temperature: 3.0,
        ..three_parts()
    };
    assert!(refusal(&case, &at_three).contains("[1.0, 2.0]"));
    case.targets.state = None;
    let cosine = only_ot(AlignConfig {
        cost: Cost::SoftmaxSimilarity,
        ..AlignConfig::default()
    });
    assert!(refusal(&case, &cosine).contains("state"));
    let reverse = LossConfig {
        reverse_kl_weight: 0.5,
        ..three_parts()
    };
    let mut drawn = Case::new(SQUARE, 16);
    drawn.targets.estimator = distill_proto::Estimator::Sampled;
    drawn.targets.counts = vec![1; drawn.targets.ids.len()];
    drawn.targets.draws = vec![SQUARE.k as u32; SQUARE.m];
    assert!(refusal(&drawn, &reverse).contains("top-k"));
    drawn.targets.counts[2] = 0;
    assert!(refusal(&drawn, &three_parts()).contains("counts"));
    let unequal = Case::new(LONGER_TEACHER, 16);
    assert!(refusal(&unequal, &three_parts()).contains("kl_weight"));
    let mut labels = Case::new(SQUARE, 16);
    labels.labels[2] = 13;
    assert!(refusal(&labels, &three_parts()).contains("label"));
    labels.labels.pop();
    assert!(refusal(&labels, &three_parts()).contains("labels"));
}

#[test]
fn a_half_precision_head_is_widened_by_tiles() {
    let case = Case::new(SQUARE, 17);
    let head = tensor(&case.head)
        .to_dtype(candle_core::DType::BF16)
        .unwrap();
    let widened_head = head.to_dtype(candle_core::DType::F32).unwrap();
    let run = |head| {
        let geometry = HeadGeometry::new(&head, Some(&tensor(&case.basis))).unwrap();
        let h = tensor(&case.hidden);
        head_loss(&h, &case.labels, &case.targets, &geometry, &three_parts()).unwrap()
    };
    let (half, full) = (run(head), run(widened_head));
    assert!((half.values.total / full.values.total - 1.0).abs() < 1e-6);
    assert!(relative(&widened(&half.grad_hidden), &widened(&full.grad_hidden)) < 1e-5);
}
