//! Compares answers on the card with those of the CPU, and counts what comes to the host of each token.

use std::path::Path;

use anyhow::{Result, ensure};
use distill_tests::{fixtures, hashed_model};
use serde_json::Value;

use crate::{
    card::Card,
    harness::{text, trainer},
    programs::{MANY_IDS, utf8},
};

/// Answered together.
const PROMPTS: [&str; 3] = ["one, two", "three", "once more"];
/// Bytes of a token's id.
const ID_BYTES: u64 = 4;

/// What `generate` prints, and what it asked of the card.
fn answers(student: &Path, device: &str, flags: &[&str]) -> Result<(String, Vec<Value>)> {
    let (work, card) = (tempfile::tempdir()?, Card::new()?);
    let trace = work.path().join("trace");
    let base = [
        &["generate", "--student", utf8(student), "--json"][..],
        &["--device", device, "--dtype", "f32"],
        &["--max-new-tokens", "5", "--prompt"],
    ];
    let args = [&base.concat()[..], &PROMPTS, flags].concat();
    let mut command = card.run(trainer(&args));
    let output = command.env("CARD_TRACE", &trace).output()?;
    ensure!(
        output.status.success(),
        "{device} {flags:?}: {}",
        text(&output)
    );
    card.accepted_all()?;
    let lines = std::fs::read_to_string(&trace).unwrap_or_default();
    let calls = lines.lines().map(serde_json::from_str);
    Ok((
        String::from_utf8(output.stdout)?,
        calls.collect::<serde_json::Result<_>>()?,
    ))
}

/// Refuses other answers than the CPU's, and any copy to the host but of the ids of a pass.
fn same_on_both(student: &Path, flags: &[&str]) -> Result<()> {
    let (there, calls) = answers(student, "cuda", flags)?;
    let (here, _) = answers(student, "cpu", flags)?;
    ensure!(
        there == here,
        "{flags:?}: {there} on the card, {here} on the CPU"
    );
    let is_choice = |call: &&Value| call["kind"] == "launch" && call["name"] == "sample_rows";
    let choices = calls.iter().filter(is_choice).count();
    let copies = calls.iter().filter(|call| call["kind"] == "device to host");
    let copies: Vec<u64> = copies.filter_map(|call| call["bytes"].as_u64()).collect();
    let most = ID_BYTES * PROMPTS.len() as u64;
    ensure!(
        choices > PROMPTS.len() && copies.len() == choices,
        "{flags:?}: {choices} choices, copies to the host of {copies:?} bytes"
    );
    ensure!(
        copies.iter().all(|bytes| *bytes <= most) && copies.contains(&most),
        "{flags:?}: {copies:?}"
    );
    Ok(())
}

#[test]
fn answers_on_the_card_are_those_of_the_cpu_and_only_their_ids_come_to_the_host() -> Result<()> {
    let few = fixtures::model_directory("qwen2-tied", "tokenizer")?;
    let many = hashed_model::with_tokenizer(MANY_IDS, true)?;
    same_on_both(few.path(), &[])?;
    same_on_both(many.path(), &["--temperature", "0.8"])?;
    let all = ["--top-k", "30", "--top-p", "0.9", "--min-p", "0.02"];
    same_on_both(few.path(), &[&["--temperature", "1.3"], &all[..]].concat())
}
