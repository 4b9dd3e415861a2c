//! Tests of drawn rows against softmax in f64.

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

fn keep(estimator: Estimator, top_k: usize, draws: usize) -> Keep {
    Keep {
        estimator,
        top_k,
        draws,
        sample_seed: 11,
    }
}

fn keys(rows: usize) -> Vec<RowKey> {
    (0..rows as u64)
        .map(|row| RowKey {
            sequence: row / 7,
            position: row % 7 + 1,
        })
        .collect()
}

fn select(rows: &[f32], vocab: usize, keep: &Keep) -> Selected {
    let keys = keys(rows.len() / vocab);
    select_rows(rows, vocab, keep, &[1.0, 2.0, 4.0], &keys).unwrap()
}

fn softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::MIN, f32::max);
    let exps = row.iter().map(|&y| (f64::from(y) - f64::from(max)).exp());
    let exps: Vec<f64> = exps.collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / sum).collect()
}

/// Probabilities of the draws: the softmax without the `k` largest entries.
fn tail(row: &[f32], k: usize) -> Vec<f64> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap().then(a.cmp(&b)));
    let mut rest = row.to_vec();
    order[..k]
        .iter()
        .for_each(|&id| rest[id] = f32::NEG_INFINITY);
    softmax(&rest)
}

/// Logits with a long tail over several parts, the last one incomplete.
fn row(vocab: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..vocab)
        .map(|_| 9.0 * rng.random::<f32>().powi(2) - 3.0)
        .collect()
}

/// Pearson's statistic of the counts against `probabilities`, in standard deviations above its mean. Ids that are drawn
/// less than ten times on average are one cell together.
fn excess(counts: &[f64], probabilities: &[f64], draws: f64) -> f64 {
    let mut rare = (0.0, 0.0);
    let (mut statistic, mut cells) = (0.0, 0.0);
    for (count, p) in counts.iter().zip(probabilities) {
        let expected = p * draws;
        if expected < 10.0 {
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            statistic += (count - expected).powi(2) / expected;
            cells += 1.0;
        }
    }
    if rare.1 > 0.0 {
        statistic += (rare.0 - rare.1).powi(2) / rare.1;
        cells += 1.0;
    }
    let degrees: f64 = cells - 1.0;
    (statistic - degrees) / (2.0 * degrees).sqrt()
}

fn count_draws(selected: &Selected, vocab: usize) -> Vec<f64> {
    let mut counts = vec![0.0; vocab];
    for (&id, &count) in selected.ids.iter().zip(&selected.counts) {
        counts[id as usize] += f64::from(count);
    }
    counts
}

#[test]
fn draws_of_one_row_follow_its_softmax() {
    let (vocab, draws) = (2500, 400_000);
    for seed in 0..3 {
        let row = row(vocab, seed);
        let selected = select(&row, vocab, &keep(Estimator::Sampled, 0, draws));
        let counts = count_draws(&selected, vocab);
        assert_eq!(counts.iter().sum::<f64>(), draws as f64);
        let found = excess(&counts, &softmax(&row), draws as f64);
        // A chi-square of a thousand cells is nearly normal; a bias of 2 % in every tenth cell gives 3.
        assert!(found < 4.0, "{found} standard deviations");
    }
}

#[test]
fn draws_of_many_rows_follow_the_softmax() {
    let (vocab, rows, draws) = (40, 20_000, 6);
    let one = row(vocab, 5);
    let selected = select(
        &one.repeat(rows),
        vocab,
        &keep(Estimator::Sampled, 0, draws),
    );
    let counts = count_draws(&selected, vocab);
    let found = excess(&counts, &softmax(&one), (rows * draws) as f64);
    assert!(found < 4.0, "{found} standard deviations");
}

#[test]
fn total_variation_on_a_small_vocabulary_is_what_chance_leaves() {
    let row = [0.0f32, 1.0, -2.0, 3.0, 0.5, -30.0, 2.0];
    let draws = 1_000_000;
    let selected = select(&row, 7, &keep(Estimator::Sampled, 0, draws));
    let counts = count_draws(&selected, 7);
    let p = softmax(&row);
    let distance: f64 = counts
        .iter()
        .zip(&p)
        .map(|(count, p)| (count / draws as f64 - p).abs())
        .sum::<f64>()
        / 2.0;
    // Half the sum of standard deviations of seven cells is below 7e-4.
    assert!(distance < 1.5e-3, "{distance}");
    // Probability 1e-14: it must not come up.
    assert_eq!(counts[5], 0.0);
}

#[test]
fn draws_beside_a_head_follow_what_it_leaves_even_of_a_hundred_thousandth() {
    let (vocab, head, draws) = (2500, 3, 400_000);
    let mut row = row(vocab, 9);
    // Three entries share the first part with others and hold all but about 1e-5 of the mass: f32 sums of the whole part
    // know the rest of it to a percent.
    (row[7], row[500], row[1400]) = (22.0, 23.0, 22.5);
    let p = softmax(&row);
    assert!(1.0 - p[7] - p[500] - p[1400] < 2e-5);
    let selected = select(&row, vocab, &keep(Estimator::HeadSampled, head, draws));
    let counts = count_draws(&selected, vocab);
    assert_eq!((counts[7], counts[500], counts[1400]), (0.0, 0.0, 0.0));
    assert_eq!(counts.iter().sum::<f64>(), draws as f64);
    let found = excess(&counts, &tail(&row, head), draws as f64);
    assert!(found < 4.0, "{found} standard deviations");
}

#[test]
fn the_weights_of_a_row_estimate_expectations_without_bias() {
    let (vocab, rows) = (60, 6000);
    let one = row(vocab, 21);
    let mut rng = StdRng::seed_from_u64(4);
    let f: Vec<f64> = (0..vocab).map(|_| rng.random_range(-1.0..1.0)).collect();
    let p = softmax(&one);
    let expected: f64 = p.iter().zip(&f).map(|(p, f)| p * f).sum();
    let all = one.repeat(rows);
    for keep in [
        keep(Estimator::Sampled, 0, 5),
        keep(Estimator::HeadSampled, 4, 5),
    ] {
        let selected = select(&all, vocab, &keep);
        let mut start = 0;
        let estimates: Vec<f64> = selected
            .widths
            .iter()
            .zip(&selected.statistics)
            .map(|(width, statistics)| {
                let entries = start..start + width;
                start += width;
                let ids = &selected.ids[entries.clone()];
                let probability =
                    |i: usize| f64::from(selected.logits[i] - statistics.logsumexp[0]).exp();
                let head: Vec<usize> = entries
                    .clone()
                    .filter(|&i| selected.counts[i] == 0)
                    .collect();
                let left = 1.0 - head.iter().map(|&i| probability(i)).sum::<f64>();
                let draws: u32 = selected.counts[entries.clone()].iter().sum();
                assert_eq!((head.len(), draws), (keep.head(), 5));
                let weight = |i: usize| match selected.counts[i] {
                    0 => probability(i),
                    count => left * f64::from(count) / f64::from(draws),
                };
                entries
                    .zip(ids)
                    .map(|(i, &id)| weight(i) * f[id as usize])
                    .sum()
            })
            .collect();
        let n = rows as f64;
        let mean = estimates.iter().sum::<f64>() / n;
        let variance = estimates.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let error = (variance / n).sqrt();
        assert!(
            (mean - expected).abs() < 4.0 * error,
            "{mean} for {expected}, standard error {error}"
        );
        // The spread of five independent draws from what the head leaves.
        let q = tail(&one, keep.head());
        let left: f64 = 1.0 - top_mass(&p, keep.head());
        let first: f64 = q.iter().zip(&f).map(|(q, f)| q * f).sum();
        let second: f64 = q.iter().zip(&f).map(|(q, f)| q * f * f).sum();
        let spread = left * left * (second - first * first) / 5.0;
        assert!(
            (variance / spread - 1.0).abs() < 0.1,
            "{variance} for {spread}: the draws are not independent"
        );
    }
}

fn top_mass(p: &[f64], k: usize) -> f64 {
    let mut p = p.to_vec();
    p.sort_by(|a, b| b.total_cmp(a));
    p[..k].iter().sum()
}

#[test]
fn chunks_and_threads_change_nothing() {
    let (vocab, rows) = (1500, 40);
    let logits: Vec<f32> = (0..rows).flat_map(|i| row(vocab, i as u64)).collect();
    for estimator in [Estimator::Sampled, Estimator::HeadSampled] {
        let keep = keep(estimator, 6, 20);
        let whole = select(&logits, vocab, &keep);
        for (chunk, threads) in [(1, 1), (7, 2), (40, 3)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            let mut parts = Selected::default();
            for (logits, keys) in logits.chunks(chunk * vocab).zip(keys(rows).chunks(chunk)) {
                let select = || select_rows(logits, vocab, &keep, &[1.0, 2.0, 4.0], keys);
                parts.extend(pool.install(select).unwrap());
            }
            assert_eq!(parts, whole);
        }
        let other = Keep {
            sample_seed: 12,
            ..keep
        };
        assert_ne!(select(&logits, vocab, &other).ids, whole.ids);
    }
}

#[test]
fn a_row_with_all_its_mass_in_one_place_has_one_entry() {
    for place in [0usize, 63, 1023, 1024, 2999] {
        let mut row = vec![-50.0f32; 3000];
        row[place] = 60.0;
        let drawn = select(&row, 3000, &keep(Estimator::Sampled, 0, 32));
        assert_eq!(
            (drawn.ids, drawn.counts),
            (vec![place as u32], vec![32]),
            "{place}"
        );
        let beside = select(&row, 3000, &keep(Estimator::HeadSampled, 1, 32));
        assert_eq!(
            (beside.ids, beside.counts, beside.widths),
            (vec![place as u32], vec![0], vec![1])
        );
    }
}

#[test]
fn a_head_of_the_whole_vocabulary_leaves_nothing_to_draw() {
    let row = row(50, 3);
    let selected = select(&row, 50, &keep(Estimator::HeadSampled, 50, 32));
    assert_eq!(selected.ids, (0..50).collect::<Vec<u32>>());
    assert!(selected.counts.iter().all(|&count| count == 0));
    assert_eq!(keep(Estimator::HeadSampled, 50, 32).width_max(50), 50);
}

#[test]
fn the_ends_of_the_number_range_are_drawn_from_without_a_panic() {
    let rows = [
        [f32::MAX, f32::MIN, 0.0, 1.0],
        [f32::MIN, f32::MIN, f32::MIN, f32::MIN],
        [f32::MAX, f32::MAX, f32::MIN, f32::MAX],
        [-0.0, 0.0, -87.0, -88.0],
    ];
    let sampled = select(rows.as_flattened(), 4, &keep(Estimator::Sampled, 0, 200));
    assert_eq!(sampled.widths, [1, 4, 3, 2]);
    let beside = select(
        rows.as_flattened(),
        4,
        &keep(Estimator::HeadSampled, 1, 200),
    );
    assert_eq!(beside.widths, [1, 4, 3, 2]);
}

#[test]
fn the_stored_temperatures_do_not_change_what_is_drawn() {
    let row = row(3000, 8);
    let keep = keep(Estimator::Sampled, 0, 64);
    let drawn = |temperatures: &[f32]| {
        let selected = select_rows(&row, 3000, &keep, temperatures, &keys(1)).unwrap();
        (selected.ids, selected.counts)
    };
    let expected = drawn(&[1.0]);
    for temperatures in [&[2.0][..], &[1.0, 4.0], &[3.0, 1.0], &[0.5, 1.0]] {
        assert_eq!(drawn(temperatures), expected, "{temperatures:?}");
    }
}

proptest! {
    #[test]
    fn drawn_rows_obey_the_rules_of_a_frame(
        row in proptest::collection::vec(prop_oneof![-40f32..40.0, Just(-40.0), Just(3.0), -3000f32..3000.0], 1..2200),
        top_k in 1usize..40,
        draws in 1usize..80,
        beside in any::<bool>(),
    ) {
        let (vocab, top_k) = (row.len(), top_k.min(row.len()));
        let estimator = if beside { Estimator::HeadSampled } else { Estimator::Sampled };
        let keep = keep(estimator, top_k, draws);
        let selected = select(&row, vocab, &keep);
        prop_assert!(selected.ids.is_sorted_by(|a, b| a < b));
        prop_assert!(selected.ids.len() <= keep.width_max(vocab));
        for (&id, &logit) in selected.ids.iter().zip(&selected.logits) {
            prop_assert_eq!(row[id as usize], logit);
        }
        let total: u32 = selected.counts.iter().sum();
        prop_assert!(total == draws as u32 || (beside && total == 0));
        let head: Vec<u32> = selected.ids.iter().zip(&selected.counts).filter(|(_, count)| **count == 0).map(|(id, _)| *id).collect();
        let largest = select_rows(&row, vocab, &Keep::top_k(top_k), &[1.0], &[]).unwrap();
        prop_assert_eq!(head, if beside { largest.ids } else { vec![] });
        let p = softmax(&row);
        for (&id, &count) in selected.ids.iter().zip(&selected.counts) {
            prop_assert!(count == 0 || p[id as usize] > 1e-30);
        }
        if beside && total == 0 {
            prop_assert!(1.0 - top_mass(&p, top_k) < 1.1e-7);
        }
    }
}
