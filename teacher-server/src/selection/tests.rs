use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const TEMPERATURES: [f32; 4] = [1.0, 2.0, 4.0, 1.7];

/// The slow reference: a full sort, and sums in f64.
fn reference(
    row: &[f32],
    k: usize,
    temperatures: &[f32],
) -> (Vec<u32>, Vec<f32>, [f64; 3], Vec<f64>) {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap().then(a.cmp(&b)));
    let mut ids: Vec<u32> = order[..k].iter().map(|&id| id as u32).collect();
    ids.sort();
    let logits = ids.iter().map(|&id| row[id as usize]).collect();
    let values: Vec<f64> = row.iter().copied().map(f64::from).collect();
    let n = values.len() as f64;
    let max = values.iter().copied().fold(f64::MIN, f64::max);
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / n;
    let logsumexp = temperatures.iter().map(|&tau| {
        let tau = f64::from(tau);
        max / tau
            + values
                .iter()
                .map(|y| ((y - max) / tau).exp())
                .sum::<f64>()
                .ln()
    });
    (
        ids,
        logits,
        [max, mean, variance.sqrt()],
        logsumexp.collect(),
    )
}

fn check(logits: &[f32], vocab: usize, k: usize) {
    let selected = select_rows(logits, vocab, &Keep::top_k(k), &TEMPERATURES, &[]).unwrap();
    for (row, values) in logits.chunks_exact(vocab).enumerate() {
        let (ids, kept, [max, mean, std], logsumexp) = reference(values, k, &TEMPERATURES);
        assert_eq!(selected.ids[row * k..(row + 1) * k], ids, "row {row}");
        assert_eq!(selected.logits[row * k..(row + 1) * k], kept);
        let statistics = &selected.statistics[row];
        assert_eq!(f64::from(statistics.max), max);
        // f32 results of f64 sums: half a unit in the last place of the largest term involved.
        let scale = 1e-7 * (max.abs() + mean.abs() + std + 1e-3);
        assert!((f64::from(statistics.mean) - mean).abs() <= scale);
        assert!((f64::from(statistics.std) - std).abs() <= scale.max(1e-7 * std));
        for (found, expected) in statistics.logsumexp.iter().zip(logsumexp) {
            // The shared exponential is squared up to twice: four times its 2e-7, plus rounding of the result.
            let tolerance = 2e-6 + 1e-7 * expected.abs();
            assert!(
                (f64::from(*found) - expected).abs() <= tolerance,
                "{found} {expected}"
            );
        }
    }
}

#[test]
fn equals_a_full_sort_on_random_rows_of_awkward_lengths() {
    let mut rng = StdRng::seed_from_u64(1);
    for vocab in [1usize, 2, 63, 64, 65, 1000, 5003] {
        for k in [1, 2, 64, vocab] {
            if k <= vocab {
                let rows: Vec<f32> = (0..3 * vocab)
                    .map(|_| 30.0 * rng.random::<f32>().powi(3) - 8.0)
                    .collect();
                check(&rows, vocab, k);
            }
        }
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    for value in [0.0f32, -3.5, 11.0] {
        check(&vec![value; 777], 777, 64);
    }
    let mut steps: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 40) as f32 / 8.0).collect();
    check(&steps, 5000, 64);
    steps.reverse();
    check(&steps, 5000, 1000);
}

#[test]
fn negative_zero_ties_with_zero() {
    let mut row = vec![-1.0f32; 300];
    (row[10], row[20], row[30]) = (-0.0, 0.0, -0.0);
    let selected = select_rows(&row, 300, &Keep::top_k(2), &[1.0], &[]).unwrap();
    assert_eq!(selected.ids, [10, 20]);
}

#[test]
fn all_large_entries_in_one_block_are_found() {
    let row: Vec<f32> = (0..4096)
        .map(|i| {
            if (640..704).contains(&i) {
                i as f32
            } else {
                0.0
            }
        })
        .collect();
    check(&row, 4096, 64);
    check(&row, 4096, 65);
}

#[test]
fn constant_rows_have_zero_spread_and_rows_far_from_zero_keep_theirs() {
    let selected = select_rows(&[1234.567; 500], 500, &Keep::top_k(3), &[1.0], &[]).unwrap();
    assert_eq!(selected.statistics[0].std, 0.0);
    let far: Vec<f32> = (0..2000).map(|i| 9000.0 + (i % 3) as f32 / 256.0).collect();
    check(&far, 2000, 5);
}

#[test]
fn nan_and_infinity_are_named_by_row() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0usize, 1, 64, 199] {
            let mut rows = vec![1.0f32; 600];
            rows[200 + place] = bad;
            assert_eq!(
                select_rows(&rows, 200, &Keep::top_k(4), &[1.0], &[]),
                Err(NotFinite { row: 1 })
            );
        }
    }
    let extreme = [f32::MAX, f32::MIN, 0.0, 1.0];
    assert_eq!(
        select_rows(&extreme, 4, &Keep::top_k(2), &[1.0], &[])
            .unwrap()
            .ids,
        [0, 3]
    );
}

proptest! {
    #[test]
    fn equals_a_full_sort(row in proptest::collection::vec(-40i32..40, 1..600), k in 1usize..600) {
        // Few distinct values, so that most cases have ties at the border.
        let row: Vec<f32> = row.into_iter().map(|value| value as f32 / 3.0).collect();
        check(&row, row.len(), k.min(row.len()));
    }
}
