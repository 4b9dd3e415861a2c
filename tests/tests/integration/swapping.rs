//! Runs one and the same trainer command against different teachers: only what the server's `--model` names changes.

use std::path::{Path, PathBuf};

use anyhow::Result;
use distill_model::testing::{TinyModel, write_tiny_model};
use distill_tests::fixtures;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Listen, Teacher, trainer_refuses, trainer_succeeds};
use crate::pipeline::{metrics, number, path_text};

const STEPS: usize = 3;

/// What stays: the student, the corpus, the address, and the command line that is made of them.
struct Bench {
    work: TempDir,
    student: PathBuf,
    corpus: PathBuf,
}

/// What one run left behind.
struct Run {
    lines: Vec<Value>,
    adapter: PathBuf,
}

impl Bench {
    fn new() -> Result<Self> {
        Ok(Self {
            work: tempfile::tempdir()?,
            student: embedded("student"),
            corpus: fixtures::path("corpus/documents.txt"),
        })
    }

    /// Trains against `model`; the run is kept under `name` afterwards, so that every command names the same directory.
    fn train(&self, name: &str, model: &Path, more: &[&str]) -> Result<Run> {
        let socket = self.work.path().join("teacher.sock");
        let flags = [
            "--model",
            path_text(model),
            "--corpus",
            path_text(&self.corpus),
            "--seq-len",
            "48",
        ];
        let flags = [&flags[..], more].concat();
        let teacher = Teacher::serve(self.work.path(), &Listen::Socket(socket), &flags);
        let (out, kept) = (self.work.path().join("run"), self.work.path().join(name));
        let steps = STEPS.to_string();
        trainer_succeeds(&[
            "train",
            "--teacher",
            teacher.address(),
            "--student",
            path_text(&self.student),
            "--out",
            path_text(&out),
            "--steps",
            &steps,
            "--ot-weight",
            "0.1",
            "--cost",
            "kl",
        ]);
        std::fs::rename(out, &kept)?;
        Ok(Run {
            lines: metrics(&kept)?,
            adapter: kept.join("adapter/adapter_model.safetensors"),
        })
    }
}

/// A model of the quickstart.
fn embedded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../assets")
        .join(name)
}

/// A random model of this shape with the fixtures' tokenizer, which is another one than the student's.
fn random(shape: TinyModel) -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    let model = TinyModel {
        vocab_size: 400,
        ..shape
    };
    write_tiny_model(directory.path(), &model, 11)?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let from = fixtures::path("tokenizer").join(name);
        std::fs::copy(from, directory.path().join(name))?;
    }
    Ok(directory)
}

#[test]
fn the_same_command_trains_with_every_teacher() -> Result<()> {
    let bench = Bench::new()?;
    let qwen3 = random(TinyModel::qwen3())?;
    let outside = random(TinyModel::qwen3_moe())?;
    let teachers = [
        ("embedded", embedded("teacher")),
        ("qwen3", qwen3.path().into()),
        // Outside the decoder's shape.
        ("qwen3_moe", outside.path().into()),
    ];
    let mut first_divergences = Vec::new();
    let mut names = Vec::new();
    for (name, model) in &teachers {
        let run = bench.train(name, model, &[])?;
        assert_eq!(run.lines.len(), STEPS, "{name}");
        for line in &run.lines {
            // Every teacher says something about the student's tokens, and every part of the loss hears it.
            for key in ["ce", "kl", "grad_norm", "targets"] {
                assert!(number(line, key)? > 0.0, "{name}, {key}: {line}");
            }
            // The transport's objective has an entropy in it, so it may be negative.
            assert!(number(line, "ot")? != 0.0, "{name}: {line}");
            assert!(number(line, "loss")?.is_finite(), "{name}: {line}");
        }
        first_divergences.push(number(&run.lines[0], "kl")?);
        let adapter = candle_core::safetensors::load(run.adapter, &candle_core::Device::Cpu)?;
        let mut adapter: Vec<_> = adapter
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
            .collect();
        adapter.sort();
        names.push(adapter);
    }
    // What is trained is the student's alone; what it is told is the teacher's.
    assert!(
        names
            .iter()
            .all(|adapter| *adapter == names[0] && !adapter.is_empty())
    );
    for (i, divergence) in first_divergences.iter().enumerate() {
        let others = &first_divergences[..i];
        assert!(!others.contains(divergence), "{first_divergences:?}");
    }
    Ok(())
}

#[test]
fn a_teacher_outside_the_decoder_takes_turns_and_teaches_the_same() -> Result<()> {
    let bench = Bench::new()?;
    let outside = random(TinyModel::qwen3_moe())?;
    let resident = bench.train("resident", outside.path(), &[])?;
    let swap = ["--vram-mode", "swap", "--window", "2"];
    let swapped = bench.train("swap", outside.path(), &swap)?;
    assert_eq!(
        std::fs::read(resident.adapter)?,
        std::fs::read(swapped.adapter)?
    );
    Ok(())
}

#[test]
fn a_teacher_outside_the_decoder_is_no_student() -> Result<()> {
    let outside = random(TinyModel::qwen3_moe())?;
    let model = path_text(outside.path());
    for command in [
        &["train", "--teacher", "unix:/nowhere", "--student", model][..],
        &["quantize", "--from", model],
    ] {
        let out = outside.path().join(command[0]);
        let said = trainer_refuses(&[command, &["--out", path_text(&out)]].concat());
        assert!(
            said.contains("qwen3_moe") && said.contains("teacher-server only"),
            "{said}"
        );
    }
    Ok(())
}
