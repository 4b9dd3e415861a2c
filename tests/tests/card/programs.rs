//! Runs both programs on one card, as users do, and compares with the CPU.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use distill_tests::{fixtures, hashed_model};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    card::Card,
    harness::{Listen, Teacher, text, trainer},
};

/// Steps of a run.
const STEPS: usize = 3;
/// How long a trainer waits for a teacher, which may be loading on a slow machine, and which the card may have ended.
const PATIENCE_SECONDS: &str = "180";
/// Loss and gradient norm of a step may be off by this share in f32: the sums are formed in another order.
const TOLERANCE: f64 = 2e-3;

/// Ids of a larger vocabulary: more than two blocks of 1,024 threads, and odd in eights.
pub const MANY_IDS: usize = 2500;

/// Two models with one tokenizer, and a place to work.
pub struct Pair {
    teacher: TempDir,
    student: TempDir,
    pub work: TempDir,
}

impl Pair {
    pub fn new() -> Result<Self> {
        Ok(Self {
            teacher: fixtures::model_directory("qwen2-untied", "tokenizer")?,
            student: fixtures::model_directory("qwen2-tied", "tokenizer")?,
            work: tempfile::tempdir()?,
        })
    }

    /// Two models of more ids than a block has threads, in a number that no vector load divides.
    pub fn of_many_ids() -> Result<Self> {
        Ok(Self {
            teacher: hashed_model::with_tokenizer(MANY_IDS, false)?,
            student: hashed_model::with_tokenizer(MANY_IDS, true)?,
            work: tempfile::tempdir()?,
        })
    }

    /// Starts the teacher on the card.
    pub fn serve(&self, card: &Card, flags: &[&str]) -> Teacher {
        let corpus = fixtures::path("corpus/documents.txt");
        let base = [
            "--model",
            utf8(self.teacher.path()),
            "--corpus",
            utf8(&corpus),
            "--seq-len",
            "48",
        ];
        let flags = [&base, flags].concat();
        Teacher::serve_with(
            self.work.path(),
            &Listen::Loopback,
            &flags,
            &card.variables(),
        )
    }

    /// A `train` on the card into `work/name`, not yet run; the directory.
    pub fn train(
        &self,
        card: &Card,
        teacher: &Teacher,
        name: &str,
        flags: &[&str],
    ) -> (Command, PathBuf) {
        let out = self.work.path().join(name);
        let steps = STEPS.to_string();
        let base = [
            "train",
            "--teacher",
            teacher.address(),
            "--student",
            utf8(self.student.path()),
        ];
        let base = [
            &base[..],
            &["--out", utf8(&out), "--steps", &steps, "--seed", "7"],
            &["--connect-timeout-seconds", PATIENCE_SECONDS],
            flags,
        ]
        .concat();
        (card.run(trainer(&base)), out)
    }
}

pub fn utf8(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// The bytes of what a run learnt.
pub fn adapter(run: &Path) -> Result<Vec<u8>> {
    Ok(std::fs::read(
        run.join("adapter/adapter_model.safetensors"),
    )?)
}

/// Refuses a trainer that failed, with what it and its teacher said.
fn succeeded(output: &Output, teacher: &Teacher) -> Result<()> {
    let said = text(output);
    ensure!(output.status.success(), "{said}\n{}", teacher.log());
    Ok(())
}

/// The lines of metrics.jsonl.
fn metrics(run: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    text.lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

fn number(line: &Value, key: &str) -> Result<f64> {
    line[key]
        .as_f64()
        .with_context(|| format!("{key} of {line}"))
}

/// Trains on the card and then on the CPU with the same flags; refuses a step that differs.
fn same_on_both(pair: &Pair, server: &[&str], flags: &[&str]) -> Result<()> {
    let card = Card::new()?;
    let mut lines = Vec::new();
    for device in ["cuda", "cpu"] {
        let place = ["--device", device, "--dtype", "f32"];
        let teacher = pair.serve(&card, &[server, &place].concat());
        let (mut command, out) = pair.train(&card, &teacher, device, &[flags, &place].concat());
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "{device} {flags:?}: {}\n{}",
            text(&output),
            teacher.log()
        );
        card.accepted_all()?;
        lines.push(metrics(&out)?);
    }
    for (there, here) in lines[0].iter().zip(&lines[1]) {
        for key in ["loss", "ce", "kl", "ot", "grad_norm"]
            .iter()
            .filter(|key| here[**key].is_number())
        {
            let (there, here) = (number(there, key)?, number(here, key)?);
            ensure!(
                (there - here).abs() <= TOLERANCE * here.abs().max(1e-2),
                "{flags:?}, {key}: {there} on the card, {here} on the CPU"
            );
        }
    }
    ensure!(
        lines[0].len() == STEPS && lines[1].len() == STEPS,
        "{} steps",
        lines[0].len()
    );
    Ok(())
}

#[test]
fn a_run_on_the_card_takes_the_steps_of_one_on_the_cpu() -> Result<()> {
    same_on_both(&Pair::new()?, &[], &[])?;
    // Lengths that are no whole number of blocks.
    same_on_both(&Pair::new()?, &[], &["--lora-rank", "3"])?;
    // Matrices that are not unpacked, each a product of its own.
    same_on_both(&Pair::new()?, &[], &["--quantize", "none"])
}

#[test]
fn a_vocabulary_of_several_blocks_takes_the_steps_of_the_cpu() -> Result<()> {
    let kept = ["--estimator", "top-k", "--top-k", "64"];
    same_on_both(&Pair::of_many_ids()?, &kept, &[])?;
    let transport = ["--ot-weight", "1", "--cost", "kl"];
    same_on_both(&Pair::of_many_ids()?, &[], &transport)
}

#[test]
fn transport_on_the_card_takes_the_steps_of_the_cpu() -> Result<()> {
    let logits = ["--ot-weight", "1", "--batch-size", "2"];
    same_on_both(&Pair::new()?, &["--state", "exact"], &logits)?;
    let rows = ["--ot-weight", "1", "--cost", "kl", "--block-size", "0"];
    same_on_both(&Pair::new()?, &[], &rows)
}

#[test]
fn packed_rows_and_8_bit_moments_take_the_steps_of_the_cpu() -> Result<()> {
    let flags = [
        "--batch-size",
        "3",
        "--pack-tokens",
        "128",
        "--optimizer",
        "adamw8bit",
        "--checkpointing",
        "off",
        // Moments of small matrices stay in f32.
        "--lora-rank",
        "64",
    ];
    same_on_both(&Pair::new()?, &[], &flags)
}

#[test]
fn half_precision_trains_on_the_card() -> Result<()> {
    trains_in_half_precision(&Pair::new()?, &[])
}

/// On a card rows of logits may be longer than the vocabulary; what lies there is nobody's.
#[test]
fn half_precision_reads_nothing_past_a_row_of_logits() -> Result<()> {
    let roots = ["--ot-weight", "1", "--similarity", "bhattacharyya"];
    trains_in_half_precision(&Pair::of_many_ids()?, &roots)
}

fn trains_in_half_precision(pair: &Pair, flags: &[&str]) -> Result<()> {
    let card = Card::new()?;
    let teacher = pair.serve(&card, &["--device", "cuda"]);
    let flags = [flags, &["--device", "cuda"]].concat();
    let (mut command, out) = pair.train(&card, &teacher, "bf16", &flags);
    let output = command.output()?;
    succeeded(&output, &teacher)?;
    card.accepted_all()?;
    for line in metrics(&out)? {
        ensure!(number(&line, "loss")?.is_finite(), "{line}");
    }
    Ok(())
}

#[test]
fn two_trainers_share_the_card_with_their_teacher() -> Result<()> {
    let (pair, card) = (Pair::new()?, Card::new()?);
    let teacher = pair.serve(&card, &["--device", "cuda"]);
    let start = |name: &str| -> Result<_> {
        let (mut command, out) = pair.train(&card, &teacher, name, &["--device", "cuda"]);
        let pipe = std::process::Stdio::piped;
        Ok((command.stdout(pipe()).stderr(pipe()).spawn()?, out))
    };
    let (first, second) = (start("first")?, start("second")?);
    let mut adapters = Vec::new();
    for (child, out) in [first, second] {
        let output = child.wait_with_output()?;
        succeeded(&output, &teacher)?;
        adapters.push(adapter(&out)?);
    }
    card.accepted_all()?;
    ensure!(adapters[0] == adapters[1], "two equal runs differ");
    Ok(())
}

/// What cuBLAS keeps for itself as long as a process has a handle of it, and what the process' context takes.
const CUBLAS_BYTES: u64 = 4 << 20;
const CONTEXT_BYTES: u64 = 396 << 20;

#[test]
fn a_handover_leaves_nothing_on_the_card() -> Result<()> {
    let pair = Pair::new()?;
    let trace = pair.work.path().join("trace");
    let card = Card::new()?.with("CARD_TRACE", trace.display());
    let swap = ["--device", "cuda", "--vram-mode", "swap", "--window", "2"];
    let mut teacher = pair.serve(&card, &swap);
    let (mut command, _) = pair.train(&card, &teacher, "swapped", &["--device", "cuda"]);
    let pipe = std::process::Stdio::piped;
    let leader = command.stdout(pipe()).stderr(pipe()).spawn()?;
    let leading = leader.id().to_string();
    succeeded(&leader.wait_with_output()?, &teacher)?;
    teacher.signal(libc::SIGTERM);
    card.accepted_all()?;
    let (mut callers, mut givers, mut handovers) = (BTreeSet::new(), BTreeSet::new(), 0);
    for line in std::fs::read_to_string(&trace)?.lines() {
        let call: Value = serde_json::from_str(line)?;
        callers.insert(call["pid"].to_string());
        if call["kind"] != "trim" {
            continue;
        }
        let live = call["live"].as_u64().context("live bytes")?;
        ensure!(live <= CUBLAS_BYTES, "{live} bytes stay: {call}");
        // The driver takes nothing back that the card may still be at work on: the host has to wait first.
        let reserved = call["reserved"].as_u64().context("reserved bytes")?;
        ensure!(
            reserved <= CONTEXT_BYTES + CUBLAS_BYTES,
            "{reserved} bytes are not the card's again: {call}"
        );
        givers.insert(call["pid"].to_string());
        handovers += 1;
    }
    // The teacher hands its memory back; the trainer's processes end, and the one that starts them is never there.
    ensure!(
        givers.len() == 1 && handovers >= 2,
        "{handovers} handovers of {givers:?}"
    );
    ensure!(
        callers.len() >= 3 && !callers.contains(&leading),
        "{callers:?} were on the card, {leading} leads"
    );
    Ok(())
}
