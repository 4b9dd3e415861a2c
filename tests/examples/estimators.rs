//! Prints, for every estimator of the teacher's distribution, the bytes of its frames and how far the gradient of its KL in
//! the student's hidden states is from that of the full KL, after the same coding that a frame does.
//!
//! ```text
//! cargo run --release -p distill-tests --example estimators -- --teacher DIR --student DIR --data FILE
//! ```
#![allow(clippy::print_stdout)]

use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use distill_model::{Decoder, LoadOptions, ModelConfig, Weights};
use distill_proto::{Estimator, Fingerprint, Frame, FrameContext, Rows, ValueCoding};
use distill_text::{Sequence, TokenizerFiles, Windowing, read_corpus};
use student_trainer::config::{ComputeDtype, Quantize};
use student_trainer::loss::{HeadGeometry, LossConfig, Targets, head_loss};
use student_trainer::student::{Place, StudentFiles};
use teacher_server::selection::{Keep, RowKey, select_rows};

/// Rows of teacher logits that exist at one time.
const CHUNK_ROWS: usize = 64;

#[derive(Parser)]
struct Args {
    /// Directory of the teacher.
    #[arg(long)]
    teacher: PathBuf,
    /// Directory of a student with the teacher's tokenizer.
    #[arg(long)]
    student: PathBuf,
    /// Text.
    #[arg(long)]
    data: PathBuf,
    /// Tokens in a window.
    #[arg(long, default_value_t = 256)]
    seq_len: usize,
    /// Windows, from the start of the text.
    #[arg(long, default_value_t = 4)]
    windows: usize,
    /// Seeds of the draws.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
}

/// One window with what both models make of it.
struct Window {
    sequence: Sequence,
    /// Teacher logits `[M, V]`.
    logits: Vec<f32>,
    /// Student hidden states `[N, d]`.
    hidden: Tensor,
    labels: Vec<u32>,
    /// Gradient of the full KL.
    full: Vec<f32>,
}

fn main() -> Result<()> {
    distill_model::threads::configure();
    let args = Args::parse();
    let tokenizer = TokenizerFiles::open(&args.teacher)?;
    let windowing = Windowing::new(args.seq_len);
    let data = std::slice::from_ref(&args.data);
    let corpus = read_corpus(data, &tokenizer, &windowing, &mut |_| {})?;
    let vocab = tokenizer.size() as usize;
    let config = ModelConfig::load(&args.teacher)?;
    let weights = Weights::open(&args.teacher)?;
    let teacher = Decoder::load(&config, &weights, &LoadOptions::reference())?;
    let files = StudentFiles::open(&args.student)?;
    let place = Place::choose("cpu", ComputeDtype::F32)?;
    let student = files.load(Quantize::Nf4, &place, None)?;
    let geometry = HeadGeometry::new(&student.head()?.narrow(0, 0, vocab)?, None)?;

    let sequences = corpus.sequences.into_iter().take(args.windows);
    let windows = sequences
        .map(|sequence| Window::new(sequence, &teacher, &student, &geometry, vocab))
        .collect::<Result<Vec<_>>>()?;
    println!("| estimator | bytes/token | cosine to the full gradient | relative error |");
    println!("|---|---:|---:|---:|");
    for (name, keep) in estimators() {
        let seeds = if keep.estimator == Estimator::TopK {
            1
        } else {
            args.seeds
        };
        let mut sum = Distance::default();
        for window in &windows {
            for sample_seed in 0..seeds {
                let keep = Keep {
                    sample_seed,
                    ..keep
                };
                sum.add(&window.distance(&keep, &geometry, vocab)?);
            }
        }
        let Distance {
            bytes_per_token,
            cosine,
            relative_error,
            count,
        } = sum;
        println!(
            "| {name} | {:.1} | {:.4} | {:.4} |",
            bytes_per_token / count,
            cosine / count,
            relative_error / count
        );
    }
    Ok(())
}

fn estimators() -> Vec<(String, Keep)> {
    let drawn = |estimator, top_k, draws| Keep {
        estimator,
        top_k,
        draws,
        sample_seed: 0,
    };
    let top = [8, 16, 32, 64, 128, 256].map(|k| (format!("top {k}"), Keep::top_k(k)));
    let draws = [8, 16, 32, 64].map(|n| (format!("{n} draws"), drawn(Estimator::Sampled, 0, n)));
    let both = [(4, 8), (8, 16), (16, 16), (16, 32), (32, 32)].map(|(k, n)| {
        (
            format!("top {k} + {n} draws"),
            drawn(Estimator::HeadSampled, k, n),
        )
    });
    top.into_iter().chain(draws).chain(both).collect()
}

/// Sums over windows and seeds.
#[derive(Default)]
struct Distance {
    bytes_per_token: f64,
    cosine: f64,
    relative_error: f64,
    count: f64,
}

impl Distance {
    fn add(&mut self, other: &Self) {
        self.bytes_per_token += other.bytes_per_token;
        self.cosine += other.cosine;
        self.relative_error += other.relative_error;
        self.count += other.count;
    }
}

impl Window {
    fn new(
        sequence: Sequence,
        teacher: &Decoder,
        student: &Decoder,
        geometry: &HeadGeometry,
        vocab: usize,
    ) -> Result<Self> {
        let targets: Vec<usize> = (1..sequence.token_ids.len())
            .filter(|&t| sequence.target_mask[t])
            .collect();
        let outputs: Vec<u32> = targets.iter().map(|&t| t as u32 - 1).collect();
        let outputs = Tensor::new(outputs, &Device::Cpu)?;
        let ids = Tensor::new(sequence.token_ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let states = |decoder: &Decoder| -> Result<Tensor> {
            let hidden = decoder.hidden_states(&ids)?.squeeze(0)?;
            Ok(hidden.index_select(&outputs, 0)?)
        };
        let head = teacher
            .head()?
            .narrow(0, 0, vocab)?
            .to_dtype(DType::F32)?
            .t()?;
        let teacher_states = states(teacher)?;
        let mut logits = Vec::with_capacity(targets.len() * vocab);
        for start in (0..targets.len()).step_by(CHUNK_ROWS) {
            let count = CHUNK_ROWS.min(targets.len() - start);
            let chunk = teacher_states.narrow(0, start, count)?.matmul(&head)?;
            logits.extend(chunk.flatten_all()?.to_vec1::<f32>()?);
        }
        let mut window = Self {
            labels: targets.iter().map(|&t| sequence.token_ids[t]).collect(),
            sequence,
            logits,
            hidden: states(student)?,
            full: Vec::new(),
        };
        let rows = window.rows(&Keep::top_k(vocab), vocab)?;
        window.full = window.gradient(&Targets::from_rows(&rows), geometry)?;
        Ok(window)
    }

    fn rows(&self, keep: &Keep, vocab: usize) -> Result<Rows> {
        let count = self.labels.len();
        let keys: Vec<RowKey> = (0..count as u64)
            .map(|position| RowKey {
                sequence: self.sequence.id,
                position,
            })
            .collect();
        let selected = select_rows(&self.logits, vocab, keep, &[1.0], &keys)
            .map_err(|bad| anyhow::anyhow!("teacher logits of row {} are not finite", bad.row))?;
        let block = selected
            .block(0..count, keep.estimator)
            .context("rows were lost")?;
        let statistic = |of: fn(&teacher_server::selection::Statistics) -> f32| {
            selected.statistics.iter().map(of).collect::<Vec<f32>>()
        };
        Ok(Rows {
            rows: count,
            k: block.k,
            vocab_size: vocab as u32,
            estimator: keep.estimator,
            coding: ValueCoding::Step(0.125),
            ids: block.ids,
            logits: block.logits,
            counts: block.counts,
            max: statistic(|s| s.max),
            mean: statistic(|s| s.mean),
            std: statistic(|s| s.std),
            temperatures: vec![1.0],
            logsumexp: vec![statistic(|s| s.logsumexp[0])],
            state: None,
        })
    }

    /// The KL's gradient in the hidden states.
    fn gradient(&self, targets: &Targets, geometry: &HeadGeometry) -> Result<Vec<f32>> {
        let only_kl = LossConfig {
            ce_weight: 0.0,
            ot_weight: 0.0,
            ..LossConfig::default()
        };
        let loss = head_loss(&self.hidden, &self.labels, targets, geometry, &only_kl)?;
        Ok(loss.grad_hidden.flatten_all()?.to_vec1()?)
    }

    /// Through a frame and back, as a trainer would see it.
    fn distance(&self, keep: &Keep, geometry: &HeadGeometry, vocab: usize) -> Result<Distance> {
        let sequence = &self.sequence;
        let frame = Frame {
            sequence_id: sequence.id,
            index: 0,
            text_digest: Fingerprint::of(sequence.text.as_bytes()),
            text: sequence.text.clone(),
            token_ids: sequence.token_ids.clone(),
            byte_offsets: sequence.byte_offsets.clone(),
            target_mask: sequence.target_mask.clone(),
            rows: self.rows(keep, vocab)?,
            view: None,
        };
        let context = FrameContext {
            plan: Fingerprint::of(b"estimators"),
            shard: 0,
            index: 0,
        };
        let bytes = frame.encode(&context)?;
        let read = Frame::decode(&bytes, &context)?;
        let gradient = self.gradient(&Targets::from_rows(&read.rows), geometry)?;
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter()
                .zip(b)
                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                .sum()
        };
        let (own, full) = (dot(&gradient, &gradient), dot(&self.full, &self.full));
        let along = dot(&gradient, &self.full);
        Ok(Distance {
            bytes_per_token: bytes.len() as f64 / sequence.token_ids.len() as f64,
            cosine: along / (own * full).sqrt(),
            relative_error: ((own - 2.0 * along + full).max(0.0) / full).sqrt(),
            count: 1.0,
        })
    }
}
