//! Runs the main job through both real programs on tiny models and compares the first step with a dense reference.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use distill_model::{Base, Decoder, LoadOptions, LoraConfig, ModelConfig, Weights};
use distill_tests::{
    fixtures,
    reference::{self, Step},
};
use distill_text::{Sequence, TokenizerFiles, Windowing, read_corpus};
use serde_json::Value;
use student_trainer::loss::{AlignConfig, Cost, LossConfig, Similarity};
use tempfile::TempDir;

use crate::harness::{Listen, Teacher, send_signal, trainer, trainer_succeeds};

/// Ids that the fixtures' tokenizer knows.
const VOCAB_SIZE: usize = 384;
const SEQ_LEN: usize = 48;
/// The seed of the run, and so of its adapters.
const SEED: u64 = 7;
const SEED_TEXT: &str = "7";

/// Teacher and student directories with the same tokenizer, and a corpus.
pub struct Setup {
    pub teacher: TempDir,
    pub student: TempDir,
    pub corpus: PathBuf,
    pub work: TempDir,
}

impl Setup {
    pub fn new() -> Result<Self> {
        Ok(Self {
            teacher: fixtures::model_directory("qwen2-untied", "tokenizer")?,
            student: fixtures::model_directory("qwen2-tied", "tokenizer")?,
            corpus: fixtures::path("corpus/documents.txt"),
            work: tempfile::tempdir()?,
        })
    }

    /// Starts the teacher over the corpus.
    pub fn serve(&self, listen: &Listen, flags: &[&str]) -> Teacher {
        self.serve_model(self.teacher.path(), listen, flags)
    }

    /// Starts another teacher over the corpus.
    pub fn serve_model(&self, model: &Path, listen: &Listen, flags: &[&str]) -> Teacher {
        let seq_len = SEQ_LEN.to_string();
        let model = path_text(model);
        let corpus = path_text(&self.corpus);
        let base = ["--model", model, "--corpus", corpus, "--seq-len", &seq_len];
        Teacher::serve(self.work.path(), listen, &[&base, flags].concat())
    }

    /// A `train` command line for the student into `out`; `flags` come last.
    pub fn train_args<'a>(
        &'a self,
        teacher: &'a Teacher,
        out: &'a Path,
        flags: &[&'a str],
    ) -> Vec<&'a str> {
        let (student, out) = (path_text(self.student.path()), path_text(out));
        let base = [
            "train",
            "--teacher",
            teacher.address(),
            "--student",
            student,
        ];
        [&base, ["--out", out, "--seed", SEED_TEXT].as_slice(), flags].concat()
    }

    /// Trains into `work/name` with `flags` and gives the run directory.
    pub fn train(&self, teacher: &Teacher, name: &str, flags: &[&str]) -> PathBuf {
        let out = self.work.path().join(name);
        trainer_succeeds(&self.train_args(teacher, &out, flags));
        out
    }

    fn first_sequence(&self) -> Result<Sequence> {
        let tokenizer = TokenizerFiles::open(self.teacher.path())?;
        let windowing = Windowing::new(SEQ_LEN);
        let corpus = read_corpus(
            std::slice::from_ref(&self.corpus),
            &tokenizer,
            &windowing,
            &mut |_| {},
        )?;
        corpus
            .sequences
            .into_iter()
            .next()
            .context("the corpus has a window")
    }

    pub fn reference(&self, top_k: usize, loss: &LossConfig) -> Result<Step> {
        let teacher = fixtures::decoder(self.teacher.path(), candle_core::DType::F32)?;
        let student = Decoder::load(
            &ModelConfig::load(self.student.path())?,
            &Weights::open(self.student.path())?,
            &LoadOptions {
                base: Base::QuantizeNf4,
                lora: Some(LoraConfig {
                    seed: SEED,
                    ..LoraConfig::default()
                }),
                ..LoadOptions::reference()
            },
        )?;
        reference::step(
            &teacher,
            &student,
            &self.first_sequence()?,
            VOCAB_SIZE,
            top_k,
            loss,
        )
    }
}

pub fn path_text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// A student one of whose tokens means something else than the teacher's.
pub fn another_vocabulary() -> Result<TempDir> {
    let directory = fixtures::model_directory("qwen2-tied", "tokenizer")?;
    let tokenizer = directory.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&tokenizer)?)?;
    json["added_tokens"][0]["content"] = "<|another|>".into();
    std::fs::write(&tokenizer, json.to_string())?;
    Ok(directory)
}

/// The lines of metrics.jsonl.
pub fn metrics(run: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    text.lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

/// A number of a line of metrics.
pub fn number(line: &Value, key: &str) -> Result<f64> {
    line[key]
        .as_f64()
        .with_context(|| format!("{key} in {line}"))
}

/// Kept logits travel as half-precision distances to the maximum: 2^-11 of up to 16 nats, so 4e-3 nats an entry, which
/// moves the loss by a second-order amount and gradients by no more than a few thousandths. A row off by one, a wrong
/// mask or a lost term moves both by tenths.
const LOSS_TOLERANCE: f64 = 1e-3;
const GRADIENT_TOLERANCE: f32 = 5e-3;

pub fn assert_like_reference(run: &Path, gradients: &Path, expected: &Step) -> Result<()> {
    let lines = metrics(run)?;
    let first = &lines[0];
    for (key, expected) in [
        ("loss", expected.total),
        ("ce", expected.ce),
        ("kl", expected.kl),
        ("ot", expected.ot),
    ] {
        let actual = number(first, key)?;
        let difference = (actual - expected).abs();
        assert!(
            difference < LOSS_TOLERANCE * expected.abs().max(1.0),
            "{key}: {actual}, not {expected}"
        );
    }
    let actual: HashMap<String, Tensor> = candle_core::safetensors::load(gradients, &Device::Cpu)?;
    assert_eq!(actual.len(), expected.gradients.len());
    let mut not_zero = 0;
    for (name, expected) in &expected.gradients {
        let actual = actual
            .get(name)
            .with_context(|| format!("no gradient of {name}"))?;
        let norm = |tensor: &Tensor| tensor.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
        let (difference, size) = (norm(&(actual - expected)?)?, norm(expected)?);
        assert!(
            difference <= GRADIENT_TOLERANCE * size,
            "{name}: off by {difference} of {size}"
        );
        not_zero += usize::from(size > 0.0);
    }
    // B starts at zero, so at the first step every B has a gradient and no A has.
    assert_eq!(not_zero * 2, expected.gradients.len());
    Ok(())
}

#[test]
fn the_first_step_equals_a_dense_reference_over_loopback() -> Result<()> {
    let setup = Setup::new()?;
    let teacher = setup.serve(
        &Listen::Loopback,
        &["--top-k", "24", "--value-coding", "f16"],
    );
    let gradients = setup.work.path().join("gradients.safetensors");
    let flags = [
        "--steps",
        "3",
        "--ot-weight",
        "0.5",
        "--first-step-grad-out",
        path_text(&gradients),
    ];
    let run = setup.train(&teacher, "run", &flags);
    assert_like_reference(&run, &gradients, &setup.reference(24, &with_transport())?)
}

/// Cross-entropy, KL and transport, as the flag `--ot-weight 0.5` gives them.
pub fn with_transport() -> LossConfig {
    LossConfig {
        ot_weight: 0.5,
        ..LossConfig::default()
    }
}

#[test]
fn the_first_step_equals_a_dense_reference_over_a_unix_socket_with_logit_similarities() -> Result<()>
{
    let setup = Setup::new()?;
    let socket = setup.work.path().join("teacher.sock");
    let all = VOCAB_SIZE.to_string();
    let teacher = setup.serve(
        &Listen::Socket(socket),
        &["--top-k", &all, "--value-coding", "f16", "--state", "exact"],
    );
    let gradients = setup.work.path().join("gradients.safetensors");
    let flags = [
        "--steps",
        "1",
        "--cost",
        "softmax-similarity",
        "--similarity",
        "cosine",
    ];
    let more = [
        "--kl-temperature",
        "2",
        "--ot-weight",
        "0.5",
        "--first-step-grad-out",
        path_text(&gradients),
    ];
    let run = setup.train(&teacher, "run", &[flags.as_slice(), &more].concat());
    let loss = LossConfig {
        kl_temperature: 2.0,
        align: AlignConfig {
            cost: Cost::SoftmaxSimilarity,
            similarity: Similarity::Cosine,
            ..AlignConfig::default()
        },
        ..with_transport()
    };
    assert_like_reference(&run, &gradients, &setup.reference(VOCAB_SIZE, &loss)?)
}

#[test]
fn a_run_lowers_the_loss_and_leaves_what_people_need() -> Result<()> {
    let setup = Setup::new()?;
    let teacher = setup.serve(&Listen::Loopback, &["--batch-size", "2"]);
    let run = setup.train(
        &teacher,
        "run",
        &["--epochs", "4", "--lr", "3e-3", "--batch-size", "2"],
    );
    let lines = metrics(&run)?;
    let (first, last) = (&lines[0], lines.last().context("metrics are not empty")?);
    assert!(
        number(last, "kl")? < 0.8 * number(first, "kl")?,
        "{first} ... {last}"
    );
    for file in [
        "config.toml",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/tokenizer.json",
    ] {
        assert!(run.join(file).is_file(), "{file} is missing");
    }
    let adapter = candle_core::safetensors::load(
        run.join("adapter/adapter_model.safetensors"),
        &Device::Cpu,
    )?;
    let name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight";
    assert!(adapter[name].sqr()?.sum_all()?.to_scalar::<f32>()? > 0.0);

    // The held-out measure of the same adapter agrees that it is nearer to the teacher than the bare student.
    let student = path_text(setup.student.path());
    let corpus = path_text(&setup.corpus);
    let seq_len = SEQ_LEN.to_string();
    let eval = |adapter: &[&str]| -> Result<Value> {
        let base = [
            "eval",
            "--student",
            student,
            "--data",
            corpus,
            "--seq-len",
            &seq_len,
        ];
        let more = ["--teacher", teacher.address(), "--json"];
        let output = trainer_succeeds(&[&base, more.as_slice(), adapter].concat());
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let (before, after) = (
        eval(&[])?,
        eval(&["--adapter", path_text(&run.join("adapter"))])?,
    );
    assert!(
        number(&after, "kl")? < 0.8 * number(&before, "kl")?,
        "{before} ... {after}"
    );
    Ok(())
}

#[test]
fn a_second_trainer_gets_the_same_steps_from_what_the_first_left() -> Result<()> {
    let setup = Setup::new()?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let deterministic = |run: &Path| -> Result<Vec<Vec<Value>>> {
        let keep = |line: Value| {
            ["loss", "ce", "kl", "ot", "grad_norm"]
                .map(|key| line[key].clone())
                .to_vec()
        };
        Ok(metrics(run)?.into_iter().map(keep).collect())
    };
    let first = deterministic(&setup.train(&teacher, "first", &["--epochs", "2"]))?;
    let second = deterministic(&setup.train(&teacher, "second", &["--epochs", "2"]))?;
    assert_eq!(first, second, "bitwise the same on one CPU in f32");
    Ok(())
}

#[test]
fn training_goes_on_after_the_teacher_was_killed_and_restarted() -> Result<()> {
    let setup = Setup::new()?;
    let quiet = setup.serve(&Listen::Loopback, &[]);
    let expected = metrics(&setup.train(&quiet, "quiet", &["--epochs", "3"]))?;
    drop(quiet);

    let socket = setup.work.path().join("teacher.sock");
    let mut teacher = setup.serve(&Listen::Socket(socket.clone()), &["--queue", "1"]);
    let out = setup.work.path().join("disturbed");
    let flags = ["--epochs", "3", "--prefetch-frames", "1"];
    let mut trainer = trainer(&setup.train_args(&teacher, &out, &flags)).spawn()?;
    for steps_before_the_kill in [2, 12] {
        while metrics(&out).map_or(0, |lines| lines.len()) < steps_before_the_kill {
            assert!(trainer.try_wait()?.is_none(), "the trainer ended early");
            std::thread::sleep(Duration::from_millis(5));
        }
        teacher.kill();
        assert!(trainer.try_wait()?.is_none(), "it still has steps to do");
        teacher = setup.serve(&Listen::Socket(socket.clone()), &["--queue", "1"]);
    }
    assert!(trainer.wait()?.success());
    let disturbed = metrics(&out)?;
    let losses = |lines: &[Value]| {
        lines
            .iter()
            .map(|line| line["loss"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        losses(&disturbed),
        losses(&expected),
        "nothing lost, nothing twice"
    );
    Ok(())
}

#[test]
fn an_interrupt_finishes_the_step_and_saves_the_adapter() -> Result<()> {
    let setup = Setup::new()?;
    let mut teacher = setup.serve(&Listen::Loopback, &[]);
    let out = setup.work.path().join("run");
    let endless = setup.train_args(&teacher, &out, &["--epochs", "10000"]);
    let mut trainer = trainer(&endless).spawn()?;
    while metrics(&out).map_or(0, |lines| lines.len()) < 3 {
        assert!(trainer.try_wait()?.is_none(), "the trainer ended early");
        std::thread::sleep(Duration::from_millis(50));
    }
    send_signal(&trainer, libc::SIGINT);
    assert_eq!(trainer.wait()?.code(), Some(130));
    let steps = metrics(&out)?.len();
    assert!(out.join("adapter/adapter_model.safetensors").is_file() && steps >= 3);
    assert!(teacher.signal(libc::SIGTERM).success(), "{}", teacher.log());
    Ok(())
}
