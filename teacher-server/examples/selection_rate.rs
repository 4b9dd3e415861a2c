//! Measures row selection beside a full sort: `cargo run --release -p teacher-server --example selection_rate`.
#![allow(clippy::print_stdout)]

use std::{hint::black_box, time::Instant};

use distill_proto::Estimator;
use rand::{Rng, SeedableRng, rngs::StdRng};
use teacher_server::selection::{Keep, RowKey, select_rows};

const VOCAB_SIZE: usize = 151_936;
const K: usize = 64;
const ROWS: usize = 128;
const TEMPERATURES: [f32; 3] = [1.0, 2.0, 4.0];

fn main() {
    let mut rng = StdRng::seed_from_u64(1);
    // Sums of uniforms: a bell with a thin right tail, the shape that logits have.
    let logits: Vec<f32> = (0..ROWS * VOCAB_SIZE)
        .map(|_| (0..4).map(|_| rng.random::<f32>()).sum::<f32>() * 6.0 - 12.0)
        .collect();
    let bytes = size_of_val(logits.as_slice()) as f64;
    let best = |name: &str, run: &dyn Fn()| {
        run();
        let seconds = (0..5)
            .map(|_| {
                let start = Instant::now();
                run();
                start.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min);
        let (rows, rate) = (ROWS as f64 / seconds, bytes / seconds / 1e9);
        println!("{name:<28} {rows:>8.0} rows/s {rate:>7.2} GB/s");
    };
    let keys: Vec<RowKey> = (0..ROWS as u64)
        .map(|position| RowKey {
            sequence: 1,
            position,
        })
        .collect();
    let select = |keep: Keep, temperatures: &[f32]| {
        select_rows(&logits, VOCAB_SIZE, &keep, temperatures, &keys).is_ok()
    };
    println!(
        "V={VOCAB_SIZE} K={K} threads={}",
        rayon::current_num_threads()
    );
    best("selection, 3 temperatures", &|| {
        black_box(select(Keep::top_k(K), &TEMPERATURES));
    });
    for (name, estimator, draws) in [
        ("32 draws", Estimator::Sampled, 32),
        ("1024 draws", Estimator::Sampled, 1024),
        ("head and 32 draws", Estimator::HeadSampled, 32),
    ] {
        let keep = Keep {
            estimator,
            draws,
            ..Keep::top_k(K)
        };
        best(name, &|| {
            black_box(select(keep, &TEMPERATURES));
        });
    }
    best("selection, 1 temperature", &|| {
        black_box(select(Keep::top_k(K), &TEMPERATURES[..1]));
    });
    best("copy of the same bytes", &|| {
        black_box(logits.clone());
    });
    let row = &logits[..VOCAB_SIZE];
    let start = Instant::now();
    let mut order: Vec<u32> = (0..VOCAB_SIZE as u32).collect();
    order.sort_unstable_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
    black_box(order);
    println!(
        "full sort, one thread        {:>8.0} rows/s",
        1.0 / start.elapsed().as_secs_f64()
    );
}
