//! The way that rows of logits take on a device that is not the CPU, run by the CPU and held against the CPU's own way.

use candle_core::{DType, Device, Tensor};
use distill_kernels::{Compute, HEAD};
use distill_proto::Estimator;

use super::device_rows::{Places, TensorRows, pass};
use super::divergence::DivergenceForm;
use super::estimator_tests::drawn;
use super::head_kernels::KernelRows;
use super::rows::{RowTerms, row_pass};
use super::teacher::{Teacher, TeacherRow};
use super::testing::{Case, Random, SQUARE, Sizes, emulate, relative, tensor, widened};
use super::tests::{ALL_KEPT, LONGER_TEACHER, only_ot, three_parts, transports};
use super::*;

/// f32 sums in another order, carried through a solved plan.
const CLOSE: f64 = 2e-5;

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
    let device = run(
        case,
        &case.geometry().with_rows_on_device(),
        config,
        with_head,
    );
    let close = |a: f64, b: f64| (a - b).abs() <= CLOSE * b.abs().max(0.1);
    for (a, b) in [
        (device.loss.total, host.loss.total),
        (device.loss.ce, host.loss.ce),
        (device.loss.kl, host.loss.kl),
        (device.loss.ot, host.loss.ot),
        (device.values.total, host.values.total),
        (device.values.total, device.loss.total),
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

/// Every divergence at two temperatures, with and without cross-entropy and transport.
fn row_losses() -> Vec<LossConfig> {
    let mut all = Vec::new();
    for kl_divergence in [Divergence::Forward, Divergence::Reverse, Divergence::Jsd] {
        for kl_temperature in [1.0, 2.0] {
            for (ce_weight, kl_weight, ot_weight) in
                [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.3, 0.9, 0.5)]
            {
                all.push(LossConfig {
                    ce_weight,
                    kl_weight,
                    ot_weight,
                    kl_divergence,
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
            ot,
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
            ot: OtConfig {
                cost: Cost::SoftmaxSimilarity,
                similarity: Similarity::Bhattacharyya,
                ..three_parts().ot
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
    });
    // A label that is kept, one that is not, and a row without a partner, each in a chunk with others.
    case.labels[2] = targets.ids[targets.starts[2]];
    for chunk_rows in [1, 2, 8] {
        for config in row_losses() {
            let kl_divergence = Divergence::Forward;
            compare(
                &case,
                &LossConfig {
                    chunk_rows,
                    kl_divergence,
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
    let geometry = geometry.with_rows_on_device();
    let device = run(&case, &geometry, &three_parts(), true);
    assert!((device.loss.total / host.loss.total - 1.0).abs() < CLOSE);
    let (a, b) = (device.loss.grad_hidden, host.loss.grad_hidden);
    assert!(relative(&widened(&a), &widened(&b)) < CLOSE);

    let bhattacharyya = OtConfig {
        cost: Cost::SoftmaxSimilarity,
        similarity: Similarity::Bhattacharyya,
        ..OtConfig::default()
    };
    for ot in [OtConfig::default(), bhattacharyya] {
        for bad in [f64::NAN, f64::INFINITY, 3e38] {
            let mut case = Case::new(SQUARE, 35);
            case.hidden.data[8] = bad;
            let (hidden, ot) = (tensor(&case.hidden), ot.clone());
            let config = LossConfig {
                ot,
                ..three_parts()
            };
            let loss = head_loss(&hidden, &case.labels, &case.targets, &geometry, &config);
            assert!(matches!(loss, Err(LossError::NonFinite { .. })), "{loss:?}");
        }
    }
}

/// Rows of logits with a teacher's row beside most of them, of different widths.
fn terms<'a>(teacher: &'a Teacher<'a>, rows: usize, temperature: f64) -> Vec<RowTerms<'a>> {
    let kl = |i: usize| -> Option<TeacherRow<'a>> { teacher.row(i, temperature) };
    (0..rows)
        .map(|i| RowTerms {
            label: (i * 7 % 13) as u32,
            ce: 0.3,
            kl: kl(i).map(|row| (row, 0.2)),
            divergence: DivergenceForm::Jsd(0.4),
            softmax: 0.1 * i as f64,
        })
        .collect()
}

/// The kernels, run by the emulator, against the host's rows.
#[test]
fn the_kernels_rows_are_the_host_s() {
    let compute: Compute = |inputs, outputs, calls| emulate(&HEAD, inputs, outputs, calls);
    for (vocab, k) in [(13, 4), (13, 13), (13, 1), (1500, 64), (3001, 5)] {
        for temperature in [1.0, 2.0] {
            let sizes = Sizes { vocab, k, ..SQUARE };
            let case = Case::new(sizes, 36);
            let teacher = Teacher::new(&case.targets, vocab).unwrap();
            // One row more than the teacher has.
            let rows = SQUARE.m + 1;
            let logits = Random::new(37).normals(rows * vocab, 4.0);
            let logits: Vec<f32> = logits.into_iter().map(|z| z as f32).collect();
            let terms = terms(&teacher, rows, temperature);
            let z = || Tensor::from_slice(&logits, (rows, vocab), &Device::Cpu).unwrap();
            let places = Places::new(&terms, &Device::Cpu).unwrap();
            // Rows may be longer, and hold anything there.
            let past = Tensor::full(f32::NAN, (rows, 3), &Device::Cpu).unwrap();
            let wide = Tensor::cat(&[z(), past], 1).unwrap();
            let on_card = |dtype| KernelRows::new(wide.clone(), vocab, dtype, &places, compute);
            let kernels = on_card(DType::F32).unwrap();
            let tensors = TensorRows::new(z(), &places).unwrap();
            let (by_kernels, values) = pass(kernels, &places, &terms, true).unwrap();
            let (by_tensors, _) = pass(tensors, &places, &terms, true).unwrap();
            let by_kernels = by_kernels.unwrap();
            let past = by_kernels.narrow(1, vocab, 3).unwrap();
            assert!(widened(&past).iter().all(|x| *x == 0.0));
            let (rounded, _) = pass(on_card(DType::BF16).unwrap(), &places, &terms, true).unwrap();
            let narrow = by_kernels.to_dtype(DType::BF16).unwrap();
            let wide = |x: &Tensor| widened(&x.to_dtype(DType::F32).unwrap());
            assert_eq!(wide(&rounded.unwrap()), wide(&narrow));
            let by_kernels = by_kernels.narrow(1, 0, vocab).unwrap();
            let mut expected = logits.clone();
            for (i, z) in expected.chunks_mut(vocab).enumerate() {
                let of_host = row_pass(z, &terms[i], true);
                for (a, b) in [
                    (values[i].ce, of_host.ce),
                    (values[i].kl, of_host.kl),
                    (values[i].logsumexp, of_host.logsumexp),
                ] {
                    assert!(
                        (a - b).abs() < 1e-5 * b.abs().max(0.1),
                        "{vocab} {k}: {a} {b}"
                    );
                }
            }
            let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
            for gradient in [by_kernels, by_tensors.unwrap()] {
                let distance = relative(&widened(&gradient), &expected);
                assert!(distance < 2e-6, "{vocab} {k} {temperature}: {distance:e}");
            }
        }
    }
    // Numbers that are not finite come out as such.
    for bad in [f32::NAN, f32::INFINITY] {
        let case = Case::new(SQUARE, 38);
        let teacher = Teacher::new(&case.targets, SQUARE.vocab).unwrap();
        let terms = terms(&teacher, 1, 1.0);
        for place in 0..SQUARE.vocab {
            let mut z = vec![0.5_f32; SQUARE.vocab];
            z[place] = bad;
            let z = Tensor::from_vec(z, (1, SQUARE.vocab), &Device::Cpu).unwrap();
            let places = Places::new(&terms, &Device::Cpu).unwrap();
            let rows = KernelRows::new(z, SQUARE.vocab, DType::F32, &places, compute).unwrap();
            let (_, values) = pass(rows, &places, &terms, false).unwrap();
            assert!(!values[0].logsumexp.is_finite(), "{bad} at {place}");
        }
    }
}
