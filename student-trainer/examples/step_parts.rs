//! Times one training step on a real student with made-up teacher rows, and prints where its time goes.
//!
//! ```text
//! cargo run --release -p student-trainer --example step_parts -- --student DIR [--tokens 512] [--documents 1] [--steps 4]
//!     [--checkpointing on|off|N] [--dtype f32|bf16|f16] [--padded] [--no-parts]
//! ```
//!
//! Seconds are wall-clock and CPU time of the whole step (forward, losses, backward, update). The table gives the seconds that
//! the main thread spends in each part, without the parts inside it, per step. One JSON object with the totals comes last.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use distill_model::{Checkpointing, Gradients, LoraConfig};
use distill_proto::Estimator;
use student_trainer::config::{ComputeDtype, Quantize, TrainConfig};
use student_trainer::loss::{HeadGeometry, LossConfig, Targets};
use student_trainer::optimizer::Optimizer;
use student_trainer::run::Memory;
use student_trainer::student::{Place, StudentFiles};
use student_trainer::train::{Example, LossScaler, Objective, Passes};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

#[derive(Parser)]
struct Args {
    /// The student's directory.
    #[arg(long)]
    student: PathBuf,
    /// Tokens in a document.
    #[arg(long, default_value_t = 512)]
    tokens: usize,
    /// Documents in a step.
    #[arg(long, default_value_t = 1)]
    documents: usize,
    /// Document i has tokens / (1 + i mod this) tokens.
    #[arg(long, default_value_t = 1)]
    spread: usize,
    /// Documents in a pass.
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    /// Steps; the first is left out of the figures.
    #[arg(long, default_value_t = 4)]
    steps: usize,
    /// What the forward pass keeps: on, off, or every N layers.
    #[arg(long, default_value = "on")]
    checkpointing: String,
    /// Padded rows instead of packed ones.
    #[arg(long)]
    padded: bool,
    /// f32, bf16 or f16.
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Without the table: nothing is measured inside a step.
    #[arg(long)]
    no_parts: bool,
}

fn main() -> Result<()> {
    distill_model::threads::configure();
    let args = Args::parse();
    let parts = Parts::default();
    if !args.no_parts {
        tracing::subscriber::set_global_default(parts.clone())?;
    }
    let dtype = match args.dtype.as_str() {
        "bf16" => ComputeDtype::Bf16,
        "f16" => ComputeDtype::F16,
        _ => ComputeDtype::F32,
    };
    let place = Place::choose("cpu", dtype)?;
    let files = StudentFiles::open(&args.student)?;
    let decoder = files.load(Quantize::Nf4, &place, Some(LoraConfig::default()))?;
    let vocab = files.tokenizer.size() as usize;
    let geometry = HeadGeometry::new(&decoder.head()?.narrow(0, 0, vocab)?, None)?;
    let checkpointing = match args.checkpointing.as_str() {
        "on" => Checkpointing::Every(1),
        "off" => Checkpointing::Off,
        n => Checkpointing::Every(n.parse().context("--checkpointing")?),
    };
    let sequences = args.batch_size;
    let passes = match args.padded {
        true => Passes::Padded { sequences },
        false => Passes::Packed {
            sequences,
            tokens: usize::MAX,
        },
    };
    let scale = LossScaler::new(decoder.dtype()).scale();
    let objective = Objective {
        decoder: &decoder,
        geometry: &geometry,
        trains_head: false,
        projections: &[],
        checkpointing,
        passes,
    };
    let parameters = decoder.parameters();
    let mut optimizer = Optimizer::new(
        parameters,
        TrainConfig::default().update_settings().optimizer,
    )?;
    let examples: Vec<Example> = (0..args.documents)
        .map(|i| example(i, args.tokens / (1 + i % args.spread.max(1)), vocab))
        .collect();
    let loaded = Memory::now();
    let reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();

    let (mut wall, mut cpu, mut last) = (Vec::new(), Vec::new(), 0.0);
    for step in 0..args.steps.max(2) {
        if step == 1 {
            parts.clear();
        }
        let (start, start_cpu) = (Instant::now(), cpu_seconds());
        let mut gradients = Gradients::new();
        let loss = LossConfig::default();
        let loss = objective.forward_backward(&examples, &loss, scale, &mut gradients)?;
        let _update = tracing::trace_span!("update").entered();
        let norm = gradients.squares()?.norm();
        let clip = 1.0 / norm.max(1.0);
        optimizer.update(2e-4, clip, |name| gradients.get(name))?;
        wall.push(start.elapsed().as_secs_f64());
        cpu.push(cpu_seconds() - start_cpu);
        last = loss.total;
    }
    let steps = wall.len() - 1;
    parts.print(steps, wall[1..].iter().sum::<f64>() / steps as f64);
    let median = |values: &mut [f64]| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "{}",
        serde_json::json!({
            "seconds": median(&mut wall[1..]), "best_seconds": wall[1..].iter().copied().fold(f64::INFINITY, f64::min),
            "cpu_seconds": median(&mut cpu[1..]),
            "loaded_mib": loaded.rss_bytes >> 20, "loading_peak_mib": loaded.peak_rss_bytes >> 20,
            "peak_mib": reset.then(|| Memory::now().peak_rss_bytes >> 20), "loss": last,
        })
    );
    Ok(())
}

/// A document of made-up tokens with eight kept logits a row.
fn example(index: usize, tokens: usize, vocab: usize) -> Example {
    const KEPT: usize = 8;
    let rows = tokens - 1;
    let step = vocab / KEPT;
    let entries = || (0..rows * KEPT).map(|e| (e % KEPT, e / KEPT));
    Example {
        index: 0,
        token_ids: (0..tokens)
            .map(|t| ((t * t * 31 + index * 7 + t) % vocab) as u32)
            .collect(),
        target_positions: (1..tokens).collect(),
        row_positions: (1..tokens).collect(),
        targets: Targets {
            vocab_size: vocab as u32,
            estimator: Estimator::TopK,
            starts: (0..=rows).map(|row| row * KEPT).collect(),
            ids: entries()
                .map(|(entry, row)| (entry * step + row % step) as u32)
                .collect(),
            logits: entries()
                .map(|(entry, row)| 18.0 - ((row * KEPT + entry) * 7 % KEPT) as f32 * 0.2)
                .collect(),
            counts: Vec::new(),
            draws: Vec::new(),
            temperatures: vec![1.0],
            logsumexp: vec![vec![20.0; rows]],
            mean: vec![0.0; rows],
            std: vec![2.0; rows],
            state: None,
            alignment: None,
        },
    }
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat.rsplit(')').next().map(str::split_whitespace);
    let ticks = ticks.into_iter().flatten().skip(11).take(2);
    ticks
        .filter_map(|field| field.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// Adds up the time inside spans, by name, without the time inside their own spans.
#[derive(Clone, Default)]
struct Parts(Arc<Mutex<Times>>);

#[derive(Default)]
struct Times {
    names: Vec<&'static str>,
    /// Open spans: their name, when they were entered, and the time of the spans inside.
    open: Vec<(&'static str, Instant, Duration)>,
    total: BTreeMap<&'static str, (Duration, usize)>,
}

impl Parts {
    fn with<T>(&self, f: impl FnOnce(&mut Times) -> T) -> T {
        f(&mut self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn clear(&self) {
        self.with(|times| times.total.clear());
    }

    fn print(&self, steps: usize, step_seconds: f64) {
        let total = self.with(|times| std::mem::take(&mut times.total));
        if total.is_empty() {
            return;
        }
        let seconds = |time: Duration| time.as_secs_f64() / steps as f64;
        let mut rows: Vec<_> = total.into_iter().collect();
        rows.sort_by_key(|(_, (time, _))| std::cmp::Reverse(*time));
        let named: f64 = rows.iter().map(|(_, (time, _))| seconds(*time)).sum();
        for (name, (time, calls)) in rows {
            let (time, calls) = (seconds(time), calls / steps);
            println!(
                "{name:<28} {time:7.3} s {:5.1} % {calls:6} calls",
                100.0 * time / step_seconds
            );
        }
        let rest = step_seconds - named;
        println!(
            "{:<28} {rest:7.3} s {:5.1} %",
            "(no part)",
            100.0 * rest / step_seconds
        );
    }
}

impl Subscriber for Parts {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span()
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let name = span.metadata().name();
        self.with(|times| {
            let known = times.names.iter().position(|known| *known == name);
            let index = known.unwrap_or_else(|| {
                times.names.push(name);
                times.names.len() - 1
            });
            Id::from_u64(index as u64 + 1)
        })
    }

    fn enter(&self, span: &Id) {
        self.with(|times| {
            let name = times.names[span.into_u64() as usize - 1];
            times.open.push((name, Instant::now(), Duration::ZERO));
        });
    }

    fn exit(&self, _: &Id) {
        self.with(|times| {
            let Some((name, start, inside)) = times.open.pop() else {
                return;
            };
            let all = start.elapsed();
            let own = times.total.entry(name).or_default();
            own.0 += all.saturating_sub(inside);
            own.1 += 1;
            if let Some((_, _, inside)) = times.open.last_mut() {
                *inside += all;
            }
        });
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
}
