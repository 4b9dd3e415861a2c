//! The transport solver at the sizes and costs that POT and OTT-JAX were measured at, and the whole fused head.
//!
//! `cargo bench -p student-trainer --bench loss -- sinkhorn` (or `head`); `RAYON_NUM_THREADS=1` for one thread.
#![allow(clippy::print_stdout)]

use std::hint::black_box;

use candle_core::{Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use distill_proto::{Estimator, Rows, ValueCoding};
use rand::{Rng, SeedableRng, rngs::StdRng};
use student_trainer::loss::sinkhorn::{SolverOptions, solve};
use student_trainer::loss::{HeadGeometry, LossConfig, Targets, head_loss};

/// Cosines of paired random vectors, student = teacher + noise.
fn cosines(n: usize, d: usize, noise: f32) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(7);
    let mut normal = move || (0..4).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 1.732;
    let unit = |v: &mut [f32]| {
        let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt();
        v.iter_mut().for_each(|x| *x /= norm);
    };
    let mut y: Vec<f32> = (0..n * d).map(|_| normal()).collect();
    let mut x: Vec<f32> = y.iter().map(|y| y + noise * normal()).collect();
    x.chunks_mut(d).for_each(unit);
    y.chunks_mut(d).for_each(unit);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let rows = x
        .chunks(d)
        .flat_map(|x| y.chunks(d).map(move |y| dot(x, y)));
    rows.collect()
}

fn softmax_cost(s: &[f32], n: usize, temperature: f32) -> Vec<f32> {
    let row = |row: &[f32]| {
        let exps: Vec<f32> = row.iter().map(|s| (s / temperature).exp()).collect();
        let sum: f32 = exps.iter().sum();
        exps.into_iter().map(move |e| 1.0 - e / sum)
    };
    s.chunks(n).flat_map(row).collect()
}

fn sinkhorn(c: &mut Criterion) {
    let options = SolverOptions {
        epsilon: 0.1,
        tolerance: 1e-6,
        max_iterations: 5_000,
        newton: true,
    };
    for n in [64, 512, 2048] {
        let s = cosines(n, 64, 1.5);
        let cosine: Vec<f32> = s.iter().map(|s| 1.0 - s).collect();
        for (name, cost) in [("1-cos", cosine), ("1-softmax", softmax_cost(&s, n, 0.05))] {
            let solution = solve(&cost, n, n, &options).expect("finite costs");
            println!(
                "{name} {n}: {} passes, {} Newton steps, marginal error {:.1e}, converged {}",
                solution.convergence.iterations,
                solution.convergence.newton_steps,
                solution.convergence.marginal_error,
                solution.convergence.converged
            );
            let mut group = c.benchmark_group("sinkhorn");
            group.sample_size(10);
            group.bench_function(format!("{name}/{n}"), |b| {
                b.iter(|| solve(black_box(&cost), n, n, &options));
            });
        }
    }
}

/// Qwen2.5-0.5B's head, 512 targets, 64 kept entries a row.
fn head(c: &mut Criterion) {
    let (n, vocab, d, k) = (512, 151_936, 896, 64);
    let device = &Device::Cpu;
    let random = |rows, columns, deviation: f32| {
        Tensor::randn(0.0_f32, deviation, (rows, columns), device).expect("memory")
    };
    let geometry = HeadGeometry::new(&random(vocab, d, 0.02), None).expect("a head");
    let hidden = random(n, d, 3.0);
    let rows = Rows {
        rows: n,
        k,
        vocab_size: vocab as u32,
        estimator: Estimator::TopK,
        coding: ValueCoding::F16,
        ids: (0..n * k)
            .map(|e| ((e % k) * 2_000 + e / k) as u32)
            .collect(),
        logits: (0..n * k)
            .map(|e| 18.0 - ((e * 7) % k) as f32 * 0.2)
            .collect(),
        counts: Vec::new(),
        max: vec![18.0; n],
        mean: vec![0.0; n],
        std: vec![2.0; n],
        temperatures: vec![1.0],
        logsumexp: vec![vec![20.0; n]],
        state: None,
    };
    let targets = Targets::from_rows(&rows);
    let labels: Vec<u32> = (0..n as u32).map(|i| i * 100).collect();
    let mut group = c.benchmark_group("head");
    group.sample_size(10);
    for (name, kl_weight, ot_weight) in [("ce", 0.0, 0.0), ("ce+kl+ot", 1.0, 0.5)] {
        let config = LossConfig {
            kl_weight,
            ot_weight,
            ..LossConfig::default()
        };
        group.bench_function(format!("{name}/{n}x{vocab}x{d}"), |b| {
            b.iter(|| head_loss(&hidden, &labels, &targets, &geometry, &config).expect("finite"));
        });
    }
}

criterion_group!(benches, sinkhorn, head);
criterion_main!(benches);
