//! The kernels' rows, run by the emulator, against the host's.

use candle_core::{DType, Device, Tensor};
use distill_kernels::head::VOCAB_MAX;
use distill_kernels::{Compute, HEAD};

use super::card_rows::{CardRows, row_values};
use super::divergence::{Divergences, FORMS};
use super::rows::{RowTerms, RowValues, row_pass};
use super::teacher::{Teacher, TeacherRow};
use super::testing::{Case, Random, SQUARE, Sizes, emulate, relative, tensor, widened};
use super::*;

const EMULATED: Compute = |inputs, outputs, calls| emulate(&HEAD, inputs, outputs, calls);
/// Each divergence alone, all of them, and two, of which one counts for nothing.
const MIXTURES: [Divergences; 5] = [
    mixture([Some(0.2), None, None]),
    mixture([None, Some(0.2), None]),
    mixture([None, None, Some(0.2)]),
    mixture([Some(0.1), Some(0.2), Some(0.4)]),
    mixture([Some(0.1), None, Some(0.0)]),
];

const fn mixture(weights: [Option<f64>; FORMS]) -> Divergences {
    Divergences { weights, beta: 0.4 }
}

/// Rows of logits, and what each contributes to a loss.
struct Rows<'a> {
    vocab: usize,
    logits: Vec<f32>,
    terms: Vec<RowTerms<'a>>,
}

/// What comes of them.
struct Outcome {
    values: Vec<RowValues>,
    gradient: Tensor,
}

impl<'a> Rows<'a> {
    /// Drawn logits beside teacher's rows, where there are any.
    fn new(vocab: usize, divergences: Divergences, teachers: Vec<Option<TeacherRow<'a>>>) -> Self {
        let logits = Random::new(37).normals(teachers.len() * vocab, 4.0);
        let terms = teachers.into_iter().enumerate();
        let terms = terms.map(|(i, teacher)| RowTerms {
            label: (i * 7 % vocab) as u32,
            ce: 0.3,
            teacher,
            divergences,
            softmax: 0.1 * i as f64,
        });
        Self {
            vocab,
            logits: logits.into_iter().map(|z| z as f32).collect(),
            terms: terms.collect(),
        }
    }

    fn on_host(&self) -> Outcome {
        let mut z = self.logits.clone();
        let rows = z.chunks_mut(self.vocab).zip(&self.terms);
        let values = rows.map(|(z, terms)| row_pass(z, terms, true)).collect();
        let shape = (self.terms.len(), self.vocab);
        Outcome {
            values,
            gradient: Tensor::from_vec(z, shape, &Device::Cpu).unwrap(),
        }
    }

    /// In chunks of two rows, which are longer than V and hold anything there.
    fn on_card(&self, dtype: DType) -> Outcome {
        const PADDING: usize = 3;
        let (rows, vocab) = (self.terms.len(), self.vocab);
        let z = Tensor::from_slice(&self.logits, (rows, vocab), &Device::Cpu).unwrap();
        let past = Tensor::full(f32::NAN, (rows, PADDING), &Device::Cpu).unwrap();
        let z = Tensor::cat(&[z, past], 1).unwrap();
        let on_card = CardRows::new(&self.terms, vocab, &Device::Cpu, EMULATED).unwrap();
        let (mut values, mut gradients) = (Vec::new(), Vec::new());
        for start in (0..rows).step_by(2) {
            let z = z.narrow(0, start, 2.min(rows - start)).unwrap();
            let (chunk, none) = on_card.chunk(start, &z, None).unwrap();
            assert!(none.is_none());
            let (again, gradient) = on_card.chunk(start, &z, Some(dtype)).unwrap();
            let chunk = chunk.to_vec1::<f64>().unwrap();
            let bits = |numbers: &[f64]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&chunk), bits(&again.to_vec1().unwrap()));
            values.extend(row_values(&chunk));
            gradients.push(gradient.unwrap());
        }
        let gradient = Tensor::cat(&gradients, 0).unwrap();
        let past = gradient.narrow(1, vocab, PADDING).unwrap();
        assert!(in_f64(&past).iter().all(|x| *x == 0.0));
        Outcome {
            values,
            gradient: gradient.narrow(1, 0, vocab).unwrap(),
        }
    }

    fn compare(&self, what: &str) {
        let (host, card) = (self.on_host(), self.on_card(DType::F32));
        for (i, (a, b)) in card.values.iter().zip(&host.values).enumerate() {
            let divergences = a.divergences.into_iter().zip(b.divergences);
            for (a, b) in divergences.chain([(a.logsumexp, b.logsumexp), (a.ce, b.ce)]) {
                // The tail's exponentials and their sum are f32.
                let bound = 1e-6 * b.abs().max(1.0);
                assert!((a - b).abs() < bound, "{what}, row {i}: {a} {b}");
            }
        }
        let distance = relative(&in_f64(&card.gradient), &in_f64(&host.gradient));
        assert!(distance < 2e-6, "{what}: {distance:e}");
        for dtype in [DType::BF16, DType::F16] {
            let rounded = in_f64(&self.on_card(dtype).gradient);
            let expected = in_f64(&card.gradient.to_dtype(dtype).unwrap());
            assert_eq!(rounded, expected, "{what}");
        }
    }
}

fn in_f64(x: &Tensor) -> Vec<f64> {
    widened(&x.to_dtype(DType::F32).unwrap())
}

/// A teacher's row of these probabilities.
fn taught(ids: &[u32], p: Vec<f64>, bucket: bool) -> TeacherRow<'_> {
    TeacherRow {
        ids,
        log_p: p.iter().map(|p| p.ln()).collect(),
        p,
        bucket,
        temperature: 1.0,
    }
}

#[test]
fn every_divergence_is_the_host_s() {
    for (vocab, k) in [(13, 4), (13, 13), (13, 1), (1500, 64), (3001, 5)] {
        let case = Case::new(Sizes { vocab, k, ..SQUARE }, 36);
        let teacher = Teacher::new(&case.targets, vocab).unwrap();
        for divergences in MIXTURES {
            for temperature in [1.0, 2.0] {
                // The last row has no teacher, nor has the second.
                let row = |i: usize| {
                    (i != 1 && i < SQUARE.m)
                        .then(|| teacher.row(i, temperature))
                        .flatten()
                };
                let rows = Rows::new(vocab, divergences, (0..=SQUARE.m).map(row).collect());
                rows.compare(&format!("{vocab} {k} {divergences:?} {temperature}"));
            }
        }
    }
}

#[test]
fn rows_without_a_teacher_are_the_host_s() {
    Rows::new(13, MIXTURES[0], vec![None, None, None]).compare("none at all");
}

/// The kept mass of a row may be 1, or a rounding above it; of drawn entries it is anything, and there is no bucket.
#[test]
fn a_bucket_without_mass_is_the_host_s() {
    let ids = [2, 5, 11];
    let taught = |p: [f64; 3], bucket| Some(taught(&ids, p.to_vec(), bucket));
    for divergences in MIXTURES {
        let teachers = vec![
            taught([0.5, 0.25, 0.25], true),
            taught([0.5, 0.25, 0.25 + 1e-7], true),
            taught([0.5, 0.25, 0.25 - 1e-9], true),
            taught([0.5, 0.25, 0.05], false),
            taught([0.9, 0.8, 0.7], false),
        ];
        Rows::new(13, divergences, teachers).compare(&format!("{divergences:?}"));
    }
}

#[test]
fn a_tail_of_lost_logits_is_the_host_s() {
    let ids = [0, 3, 7];
    for divergences in MIXTURES {
        let teachers = vec![
            Some(taught(&ids, vec![0.5, 0.25, 0.2], true)),
            Some(taught(&ids[..2], vec![0.5, 0.25], true)),
        ];
        let mut rows = Rows::new(13, divergences, teachers);
        for (i, z) in rows.logits.iter_mut().enumerate() {
            if !ids.contains(&((i % 13) as u32)) {
                *z = f32::NEG_INFINITY;
            }
        }
        // In the first row nothing is left but the kept; in the second one logit is.
        rows.compare(&format!("{divergences:?}"));
    }
}

/// Its rate is 1 in f32, where the factor of the tempered exponentials is not read.
#[test]
fn a_temperature_that_f32_takes_for_1_keeps_its_share_of_the_tail() {
    let case = Case::new(SQUARE, 36);
    let teacher = Teacher::new(&case.targets, SQUARE.vocab).unwrap();
    let teachers = (0..SQUARE.m).map(|i| teacher.row(i, 1.0 + 1e-9)).collect();
    Rows::new(SQUARE.vocab, MIXTURES[0], teachers).compare("almost 1");
}

#[test]
fn logits_that_are_not_finite_come_out_as_such() {
    let ids = [2, 5, 11];
    for bad in [f32::NAN, f32::INFINITY] {
        for place in 0..13 {
            let teachers = vec![Some(taught(&ids, vec![0.5, 0.25, 0.2], true)), None];
            let mut rows = Rows::new(13, MIXTURES[3], teachers);
            rows.logits[place] = bad;
            rows.logits[13 + place] = bad;
            let values = rows.on_card(DType::F32).values;
            assert!(
                values.iter().all(|row| !row.logsumexp.is_finite()),
                "{bad} at {place}"
            );
        }
    }
}

#[test]
fn the_first_row_that_is_not_finite_is_named() {
    let mut case = Case::new(SQUARE, 35);
    for row in [3, 4] {
        case.hidden.data[row * SQUARE.d] = f64::NAN;
    }
    let config = LossConfig {
        ce_weight: 0.5,
        kl_weight: 0.5,
        ot_weight: 0.0,
        chunk_rows: 2,
        ..LossConfig::default()
    };
    let geometry = case.geometry().with_rows_on_card(EMULATED).unwrap();
    for geometry in [case.geometry(), geometry] {
        let hidden = tensor(&case.hidden);
        let loss = head_loss(&hidden, &case.labels, &case.targets, &geometry, &config);
        assert!(
            matches!(
                loss,
                Err(LossError::NonFinite {
                    what: "student logits",
                    position: 3
                })
            ),
            "{loss:?}"
        );
    }
}

#[test]
fn a_vocabulary_beyond_a_block_s_memory_is_refused() {
    let geometry = |vocab| {
        let head = Tensor::zeros((vocab, 1), DType::F32, &Device::Cpu).unwrap();
        HeadGeometry::new(&head, None).unwrap()
    };
    assert!(geometry(VOCAB_MAX).with_rows_on_card(EMULATED).is_ok());
    let refusal = geometry(VOCAB_MAX + 1).with_rows_on_card(EMULATED);
    let refusal = refusal.unwrap_err().to_string();
    assert!(refusal.contains("has 392193 ids"), "{refusal}");
    // The widest still runs.
    let rows = Rows::new(VOCAB_MAX, MIXTURES[0], vec![None]);
    rows.on_card(DType::F32);
}
