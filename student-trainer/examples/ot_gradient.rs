//! Prints, for every OT cost, the norm of its gradient in the student's hidden states as a run would see it: from the first
//! frame of a running teacher, with nothing but transport in the loss. `tests/baselines/ot_gradient.py` computes the same
//! from dense teacher logits in PyTorch.
//!
//! ```text
//! ot_gradient --student DIR --teacher http://HOST:PORT
//! ```
#![allow(clippy::print_stdout)]

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use clap::Parser;
use student_trainer::{
    client::{BlockStream, ConnectOptions, Position, StreamOptions, Teacher, fetch_basis, runtime},
    config::{ComputeDtype, Quantize},
    loss::{AlignConfig, Cost, HeadGeometry, LossConfig, Similarity, Targets, head_loss},
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};

#[derive(Parser)]
struct Args {
    /// Directory of the student.
    #[arg(long)]
    student: PathBuf,
    /// Address of the teacher.
    #[arg(long)]
    teacher: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let shutdown = Shutdown::default();
    let files = StudentFiles::open(&args.student)?;
    let runtime = runtime()?;
    let (info, basis, frame) = runtime.block_on(async {
        let options = ConnectOptions {
            address: args.teacher.clone(),
            ca_cert: None,
            token_file: None,
            timeout: Duration::from_secs(600),
        };
        let teacher = Teacher::connect(&options, &shutdown).await?;
        let info = teacher.info().await?;
        info.check_student(&files.tokenizer, files.config.vocab_size)?;
        let basis = fetch_basis(&teacher, &info).await?;
        let options = StreamOptions {
            prefetch_frames: 1,
            reconnect_attempts: 1,
            token_ids: files.config.vocab_size,
            stall_max: None,
            first_pass: Default::default(),
        };
        let mut stream = BlockStream::start(
            teacher,
            info.clone(),
            Position::default(),
            options,
            shutdown.clone(),
        );
        let first = stream.next().await?.and_then(|arrival| arrival.received);
        let first = first.context("the teacher has no frame")?;
        anyhow::Ok((info, basis, first.frame))
    })?;

    let place = Place::choose("cpu", ComputeDtype::F32)?;
    let decoder = files.load(Quantize::Nf4, &place, None)?;
    let ids = Tensor::new(frame.token_ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
    let targets = frame.target_positions();
    let outputs: Vec<u32> = targets.iter().map(|&t| t as u32 - 1).collect();
    let outputs = Tensor::new(outputs, decoder.device())?;
    let hidden = decoder
        .hidden_states(&ids)?
        .squeeze(0)?
        .index_select(&outputs, 0)?;
    let labels: Vec<u32> = targets.iter().map(|&t| frame.token_ids[t]).collect();
    let head = decoder.head()?.narrow(0, 0, info.vocab_size as usize)?;
    let geometry = HeadGeometry::new(&head, basis.as_ref())?;
    for (name, config) in costs() {
        let rows = Targets::from_rows(&frame.rows);
        let loss = head_loss(&hidden, &labels, &rows, &geometry, &config)?;
        let norm = loss.grad_hidden.sqr()?.sum_all()?.sqrt()?;
        let line = serde_json::json!({
            "cost": name,
            "rows": labels.len(),
            "ot": loss.values.ot,
            "grad_h_norm": norm.to_scalar::<f32>()?,
            "iterations": loss.values.report.convergence.iterations,
            "converged": loss.values.report.convergence.converged,
        });
        println!("{line}");
    }
    Ok(())
}

/// Every cost with the shipped defaults, transport alone.
fn costs() -> Vec<(&'static str, LossConfig)> {
    let alone = |cost, similarity| LossConfig {
        ce_weight: 0.0,
        kl_weight: 0.0,
        ot_weight: 1.0,
        align: AlignConfig {
            cost,
            similarity,
            ..AlignConfig::default()
        },
        ..LossConfig::default()
    };
    let similarity = |similarity| alone(Cost::SoftmaxSimilarity, similarity);
    vec![
        ("kl", alone(Cost::Kl, Similarity::Cosine)),
        ("cosine", similarity(Similarity::Cosine)),
        ("centered-dot", similarity(Similarity::CenteredDot)),
        ("scaled-dot", similarity(Similarity::ScaledDot)),
        ("bhattacharyya", similarity(Similarity::Bhattacharyya)),
    ]
}
