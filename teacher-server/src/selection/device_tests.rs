//! The kernels, run by the emulator, against the selection on the host.

use distill_kernels::{Emulator, SELECT};
use rand::{Rng, SeedableRng, rngs::StdRng};

use distill_proto::Estimator;

use super::*;

const TEMPERATURES: [f32; 4] = [1.0, 2.0, 4.0, 1.7];

fn keep(estimator: Estimator, top_k: usize, draws: usize) -> Keep {
    Keep {
        estimator,
        top_k,
        draws,
        sample_seed: 17,
    }
}

fn keys(rows: usize) -> Vec<RowKey> {
    let key = |position| RowKey {
        sequence: 3,
        position,
    };
    (1..=rows as u64).map(key).collect()
}

/// By the emulated kernels.
fn emulated(
    logits: &Tensor,
    keep: &Keep,
    temperatures: &[f32],
) -> std::result::Result<Selected, NotFinite> {
    emulated_in_rows((logits, logits.dims()[1]), keep, temperatures)
}

/// The same of the first columns of longer rows.
fn emulated_in_rows(
    (logits, vocab): (&Tensor, usize),
    keep: &Keep,
    temperatures: &[f32],
) -> std::result::Result<Selected, NotFinite> {
    let keys = keys(logits.dims()[0]);
    let wanted = Wanted::new((logits, vocab), keep, temperatures, &keys).unwrap();
    assert!(wanted.sizes.fits());
    let compute: Compute =
        |inputs, outputs, calls| Emulator::of(&SELECT)?.compute(inputs, outputs, calls);
    wanted.select(logits, compute).unwrap()
}

fn matrix(values: &[f32], vocab: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / vocab, vocab), &Device::Cpu).unwrap()
}

fn on_host(values: &[f32], vocab: usize, keep: &Keep, temperatures: &[f32]) -> Selected {
    let keys = keys(values.len() / vocab);
    select_rows(values, vocab, keep, temperatures, &keys).unwrap()
}

/// Same ids, logits and counts; statistics up to the rounding of f32 sums.
fn check(values: &[f32], vocab: usize, keep: &Keep) {
    let found = emulated(&matrix(values, vocab), keep, &TEMPERATURES);
    let (found, expected) = (found.unwrap(), on_host(values, vocab, keep, &TEMPERATURES));
    assert_eq!(found.ids, expected.ids, "{vocab} {keep:?}");
    assert_eq!(found.logits, expected.logits);
    assert_eq!(found.counts, expected.counts);
    assert_eq!(found.widths, expected.widths);
    for (found, expected) in found.statistics.iter().zip(&expected.statistics) {
        assert_eq!(found.max, expected.max);
        // Sums of at most a few thousand distances from the largest entry, eight after another and then by halves.
        let spread = expected.max - expected.mean + expected.std;
        let tolerance = 1e-6 * spread + 2e-7 * expected.max.abs().max(expected.mean.abs());
        assert!(
            (found.mean - expected.mean).abs() <= tolerance,
            "{found:?} {expected:?}"
        );
        assert!((found.std - expected.std).abs() <= tolerance);
        for (found, expected) in found.logsumexp.iter().zip(&expected.logsumexp) {
            // The host's sums carry 2e-6 of squared exponentials.
            assert!((found - expected).abs() <= 4e-6 + 2e-7 * expected.abs());
        }
    }
}

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| 30.0 * rng.random::<f32>().powi(3) - 8.0)
        .collect()
}

#[test]
fn the_largest_entries_and_statistics_are_the_host_s() {
    for vocab in [1usize, 2, 33, 127, 128, 1000, 1024, 1025, 5003] {
        for k in [1, 2, 64, 256, vocab] {
            if k <= vocab {
                check(&random(2 * vocab, vocab as u64), vocab, &Keep::top_k(k));
            }
        }
    }
}

#[test]
fn what_rows_hold_beyond_the_vocabulary_changes_nothing() {
    // Three rows of an odd vocabulary, in rows of a multiple of 8 that end in what must not be looked at.
    for (vocab, stride) in [(1_001, 1_008), (1_025, 1_032), (5, 8)] {
        let rows: Vec<Vec<f32>> = (0..3).map(|row| random(vocab, row)).collect();
        for beyond in [f32::NAN, f32::INFINITY, 1e30] {
            let longer = rows.iter().map(|row| {
                let mut row = row.clone();
                row.resize(stride, beyond);
                row
            });
            let longer = matrix(&longer.collect::<Vec<_>>().concat(), stride);
            for keep in [Keep::top_k(5), keep(Estimator::HeadSampled, 2, 16)] {
                let found = emulated_in_rows((&longer, vocab), &keep, &TEMPERATURES);
                let expected = emulated(&matrix(&rows.concat(), vocab), &keep, &TEMPERATURES);
                let (found, expected) = (found.unwrap(), expected.unwrap());
                assert_eq!(found.ids, expected.ids, "{vocab} of {stride}");
                assert_eq!(found.logits, expected.logits);
                assert_eq!(found.counts, expected.counts);
                assert_eq!(found.statistics, expected.statistics);
            }
        }
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    // More equal entries than fit the list in shared memory, so that the choice is made in global memory.
    check(&vec![-3.5; 3000], 3000, &Keep::top_k(64));
    let steps: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 40) as f32 / 8.0).collect();
    check(&steps, 5000, &Keep::top_k(64));
    check(&steps, 5000, &Keep::top_k(1000));
    let mut zeros = vec![-1.0f32; 300];
    (zeros[10], zeros[20], zeros[30]) = (-0.0, 0.0, -0.0);
    check(&zeros, 300, &Keep::top_k(2));
    let mut one_group = vec![0.0; 4096];
    (640..704).for_each(|i| one_group[i] = i as f32);
    check(&one_group, 4096, &Keep::top_k(64));
    check(&one_group, 4096, &Keep::top_k(65));
}

#[test]
fn rows_far_from_zero_keep_their_spread() {
    let far: Vec<f32> = (0..2000).map(|i| 9000.0 + (i % 3) as f32 / 256.0).collect();
    check(&far, 2000, &Keep::top_k(5));
    let found = emulated(&matrix(&far, 2000), &Keep::top_k(5), &[1.0]);
    let std = found.unwrap().statistics[0].std;
    let expected = on_host(&far, 2000, &Keep::top_k(5), &[1.0]).statistics[0].std;
    assert!((std / expected - 1.0).abs() < 1e-5, "{std} {expected}");
}

#[test]
fn a_whole_vocabulary_in_half_precision() {
    let vocab = 151_936;
    let logits = matrix(&random(vocab, 5), vocab);
    let half = logits.to_dtype(DType::BF16).unwrap();
    let keep = keep(Estimator::HeadSampled, 64, 32);
    let found = emulated(&half, &keep, &[1.0, 2.0]);
    let rounded = half.to_dtype(DType::F32).unwrap();
    let rounded: Vec<f32> = rounded.flatten_all().unwrap().to_vec1().unwrap();
    let expected = on_host(&rounded, vocab, &keep, &[1.0, 2.0]);
    let found = found.unwrap();
    // bf16 leaves hundreds of equal entries, so that the 64th is decided by ids.
    assert_eq!((found.ids, found.counts), (expected.ids, expected.counts));
    assert!((found.statistics[0].mean - expected.statistics[0].mean).abs() < 1e-5);
    assert!((found.statistics[0].logsumexp[0] - expected.statistics[0].logsumexp[0]).abs() < 1e-5);
}

#[test]
fn nan_and_infinity_are_named_by_row() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0usize, 64, 199] {
            let mut rows = vec![1.0f32; 600];
            rows[200 + place] = bad;
            for keep in [
                Keep::top_k(4),
                keep(Estimator::Sampled, 0, 3),
                keep(Estimator::HeadSampled, 2, 3),
            ] {
                let found = emulated(&matrix(&rows, 200), &keep, &[1.0]);
                assert_eq!(found, Err(NotFinite { row: 1 }), "{bad} {keep:?}");
            }
        }
    }
    let far = matrix(&[3e38, -3e38, 0.0, 1.0], 4);
    let found = emulated(&far, &Keep::top_k(2), &[1.0]);
    assert_eq!(found, Err(NotFinite { row: 0 }));
}

/// The host's exponentials and the kernel's differ by 3e-7, so about one draw in a million falls to the neighbour; with these
/// keys none of a few thousand does.
#[test]
fn draws_are_the_host_s() {
    for (vocab, rows) in [(40, 8), (1024, 4), (2500, 4)] {
        let mut rng = StdRng::seed_from_u64(vocab as u64);
        let logits: Vec<f32> = (0..rows * vocab)
            .map(|_| 9.0 * rng.random::<f32>().powi(2) - 3.0)
            .collect();
        check(&logits, vocab, &keep(Estimator::Sampled, 0, 100));
        check(&logits, vocab, &keep(Estimator::HeadSampled, 7, 100));
    }
    // All mass in the head: nothing is drawn. A head that leaves 1e-5 of the mass of its parts.
    let mut certain = vec![-30.0; 2500];
    certain[700] = 30.0;
    check(&certain, 2500, &keep(Estimator::HeadSampled, 1, 5));
    let mut heavy = random(2500, 9);
    (heavy[7], heavy[500], heavy[1400]) = (32.0, 33.0, 32.5);
    check(&heavy, 2500, &keep(Estimator::HeadSampled, 3, 200));
    // Draws at temperatures without 1.
    let logits = random(2500, 10);
    let keep = keep(Estimator::Sampled, 0, 50);
    let found = emulated(&matrix(&logits, 2500), &keep, &[2.0]);
    let expected = on_host(&logits, 2500, &keep, &[2.0]);
    let found = found.unwrap();
    assert_eq!((found.ids, found.counts), (expected.ids, expected.counts));
}
