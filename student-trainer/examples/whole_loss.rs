//! Times the whole loss, value and gradient, with its extra peak memory, on the problem that
//! `tests/baselines/bench_losses.py whole` gives to PyTorch: frozen head `[V, d]`, 64 kept entries a row, CE + KL + 0.5 OT
//! (cost `kl`), or OT alone (cosine, from a state of rank d). One JSON object on standard output.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run --release -p student-trainer --example whole_loss -- --rows 512 [--ot-only]
//! ```
#![allow(clippy::print_stdout)]

use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::Parser;
use distill_proto::{Estimator, State, StateCoding, StateKind};
use student_trainer::loss::{
    AlignConfig, Cost, HeadGeometry, LossConfig, Similarity, Targets, head_loss,
};
use student_trainer::run::Memory;

#[derive(Parser)]
struct Args {
    /// Positions of student and teacher.
    #[arg(long, default_value_t = 512)]
    rows: usize,
    /// V.
    #[arg(long, default_value_t = 151_936)]
    vocab: usize,
    /// d.
    #[arg(long, default_value_t = 1536)]
    width: usize,
    /// K.
    #[arg(long, default_value_t = 64)]
    kept: usize,
    /// Measurements; the median counts.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// OT alone: cosine of centred logits at temperature 0.05.
    #[arg(long)]
    ot_only: bool,
}

fn main() -> Result<()> {
    distill_model::threads::configure();
    let args = Args::parse();
    let device = &Device::Cpu;
    let random = |rows, deviation: f32| Tensor::randn(0f32, deviation, (rows, args.width), device);
    let head = random(args.vocab, 0.02)?;
    let hidden = random(args.rows, 3.0)?;
    let mut targets = targets(&args);
    let mut basis = None;
    // As on the other side.
    let mut config = LossConfig {
        align: AlignConfig {
            position: Some(10.0),
            ..AlignConfig::default()
        },
        ..LossConfig::default()
    };
    if args.ot_only {
        let states = (&hidden + random(args.rows, 4.5)?)?;
        basis = Some(head.broadcast_sub(&head.mean_keepdim(0)?)?);
        targets.state = Some(State {
            kind: StateKind::Exact,
            coding: StateCoding::F16,
            rank: args.width,
            layers: 1,
            values: states.flatten_all()?.to_vec1()?,
        });
        let logits_variance = 0.02f32 * 0.02 * args.width as f32 * (9.0 + 4.5 * 4.5);
        targets.std = vec![logits_variance.sqrt(); args.rows];
        config = LossConfig {
            ce_weight: 0.0,
            kl_weight: 0.0,
            ot_weight: 1.0,
            align: AlignConfig {
                cost: Cost::SoftmaxSimilarity,
                similarity: Similarity::Cosine,
                ..config.align
            },
            ..config
        };
    }
    let labels: Vec<u32> = (0..args.rows as u32)
        .map(|i| i * 100 % args.vocab as u32)
        .collect();
    let start = Instant::now();
    let geometry = HeadGeometry::new(&head, basis.as_ref())?;
    let once = start.elapsed().as_secs_f64();
    drop(basis);

    // Where the system allows it, the peak counts from here.
    let reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = Memory::now().rss_bytes;
    let mut seconds = Vec::new();
    let mut last = None;
    for _ in 0..args.repeats.max(1) {
        let start = Instant::now();
        last = Some(head_loss(&hidden, &labels, &targets, &geometry, &config)?);
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let extra = Memory::now().peak_rss_bytes.saturating_sub(before);
    let report = last.map(|loss| (loss.values.total, loss.values.report));
    println!(
        "{}",
        serde_json::json!({
            "rows": args.rows, "vocab": args.vocab, "width": args.width, "ot_only": args.ot_only,
            "threads": rayon::current_num_threads(),
            "seconds": seconds[seconds.len() / 2],
            "once_a_run_seconds": once,
            "extra_mib": reset.then_some(extra >> 20),
            "value": report.map(|(total, _)| total),
            "iterations": report.map(|(_, report)| report.convergence.iterations),
            "converged": report.map(|(_, report)| report.convergence.converged),
        })
    );
    Ok(())
}

/// The teacher's kept entries: the same numbers as on the other side.
fn targets(args: &Args) -> Targets {
    let (n, k) = (args.rows, args.kept);
    let step = 2000.min((args.vocab - n) / k);
    let entries = || (0..n * k).map(|e| (e % k, e / k));
    Targets {
        vocab_size: args.vocab as u32,
        estimator: Estimator::TopK,
        starts: (0..=n).map(|row| row * k).collect(),
        ids: entries()
            .map(|(entry, row)| (entry * step + row) as u32)
            .collect(),
        logits: entries()
            .map(|(entry, row)| 18.0 - ((row * k + entry) * 7 % k) as f32 * 0.2)
            .collect(),
        counts: Vec::new(),
        draws: Vec::new(),
        temperatures: vec![1.0],
        logsumexp: vec![vec![20.0; n]],
        mean: vec![0.0; n],
        std: vec![2.0; n],
        state: None,
        alignment: None,
    }
}
