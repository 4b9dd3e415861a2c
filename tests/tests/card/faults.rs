//! Lets allocations fail and the card be lost, one place after another: errors that say what to do, nothing half-written, and runs
//! that go on.

use std::{path::Path, process::Output};

use anyhow::{Context, Result, ensure};
use distill_tests::fixtures;
use serde_json::Value;

use crate::{
    card::Card,
    harness::{teacher, text},
    programs::{Pair, adapter, utf8},
};

/// Places that are tried, spread evenly over those that a whole run has.
const PLACES: u64 = 12;
/// Every process on the card, so that a place is the same one in every run.
const ON_THE_CARD: [&str; 4] = ["--device", "cuda", "--dtype", "f32"];

/// `count` spread over 1..=all.
fn places(all: u64) -> impl Iterator<Item = u64> {
    let step = (all / PLACES).max(1);
    // Not always the first of a group of equal places.
    (0..PLACES).map(move |at| (at * step + at % step + 1).min(all))
}

/// How often a process did what `name` says.
fn total(counts: &Value, name: &str) -> Result<u64> {
    let count = counts[name]
        .as_u64()
        .or_else(|| counts[name]["count"].as_u64());
    count.with_context(|| format!("{name} of {counts}"))
}

/// What a process that was to fail says; no panic, no signal.
fn complaint(output: &Output, place: u64) -> Result<String> {
    let said = text(output);
    ensure!(
        output.status.code() == Some(1),
        "at {place}: {:?}: {said}",
        output.status
    );
    ensure!(!said.contains("panicked"), "at {place}: {said}");
    Ok(said)
}

/// Files that no reader would take for whole.
fn leftovers(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(leftovers(&path)?);
        } else if path
            .extension()
            .is_some_and(|end| end == "tmp" || end == "partial")
        {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

/// Trains with the card failing as `name`=place says, then goes on without; refuses words without `wanted`, and another adapter
/// than `whole`. Whether the fault was met.
fn train_and_go_on(
    pair: &Pair,
    server: &crate::harness::Teacher,
    fault: (&str, u64),
    wanted: &[&str],
    whole: &[u8],
) -> Result<bool> {
    let (name, place) = fault;
    let run = format!("{name}-{place}");
    let flags = [&ON_THE_CARD[..], &["--save-steps", "1"]].concat();
    let failing = Card::new()?.with(name, place);
    let (mut command, out) = pair.train(&failing, server, &run, &flags);
    let output = command.output()?;
    if output.status.success() {
        return Ok(false);
    }
    let said = complaint(&output, place)?;
    for part in wanted {
        ensure!(said.contains(part), "at {place}, without `{part}`: {said}");
    }
    if out.is_dir() {
        let left = leftovers(&out)?;
        ensure!(left.is_empty(), "at {place}: {left:?}");
    }
    let card = Card::new()?;
    let output = if out.join("config.toml").is_file() {
        card.run(crate::harness::trainer(&[
            "train",
            "--resume",
            utf8(&out),
            "--teacher",
            server.address(),
        ]))
        .output()?
    } else {
        pair.train(&card, server, &run, &flags).0.output()?
    };
    ensure!(output.status.success(), "after {place}: {}", text(&output));
    ensure!(
        adapter(&out)? == whole,
        "after {place} the run ended elsewhere"
    );
    card.accepted_all()?;
    Ok(true)
}

/// One undisturbed run: its adapter, and how often it did what `count` names.
fn undisturbed(
    pair: &Pair,
    server: &crate::harness::Teacher,
    count: &str,
) -> Result<(Vec<u8>, u64)> {
    let card = Card::new()?;
    let flags = [&ON_THE_CARD[..], &["--save-steps", "1"]].concat();
    let (mut command, out) = pair.train(&card, server, "whole", &flags);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", text(&output));
    Ok((adapter(&out)?, total(&card.counts()?, count)?))
}

#[test]
fn a_trainer_without_memory_says_so_and_goes_on_later() -> Result<()> {
    let pair = Pair::new()?;
    let server = pair.serve(&Card::new()?, &ON_THE_CARD);
    let (whole, all) = undisturbed(&pair, &server, "allocations")?;
    let mut met = 0;
    for place in places(all) {
        let wanted = ["memory", "--"];
        met += u64::from(train_and_go_on(
            &pair,
            &server,
            ("CARD_FAIL_ALLOC", place),
            &wanted,
            &whole,
        )?);
    }
    ensure!(met > PLACES / 2, "only {met} of {PLACES} places were met");
    Ok(())
}

#[test]
fn a_run_whose_card_was_lost_goes_on_with_another() -> Result<()> {
    let pair = Pair::new()?;
    let server = pair.serve(&Card::new()?, &ON_THE_CARD);
    let (whole, all) = undisturbed(&pair, &server, "operations")?;
    let mut met = 0;
    for place in places(all) {
        met += u64::from(train_and_go_on(
            &pair,
            &server,
            ("CARD_LOST_AT", place),
            &["lost"],
            &whole,
        )?);
    }
    ensure!(met > PLACES / 2, "only {met} of {PLACES} places were met");
    Ok(())
}

#[test]
fn a_teacher_without_memory_or_card_says_so_and_its_cache_goes_on() -> Result<()> {
    let model = fixtures::model_directory("qwen2-untied", "tokenizer")?;
    let corpus = fixtures::path("corpus/documents.txt");
    let work = tempfile::tempdir()?;
    let precompute = |card: &Card, out: &Path| -> Result<Output> {
        let mut command = teacher(&[
            "precompute",
            "--seq-len",
            "48",
            "--model",
            utf8(model.path()),
            "--corpus",
            utf8(&corpus),
            "--out",
            utf8(out),
        ]);
        command.args(ON_THE_CARD);
        Ok(card.run(command).output()?)
    };
    let sealed = |out: &Path| std::fs::read(out.join("shards/0000000"));
    let whole = work.path().join("whole");
    let card = Card::new()?;
    let output = precompute(&card, &whole)?;
    ensure!(output.status.success(), "{}", text(&output));
    let counts = card.counts()?;
    for (name, count, word) in [
        ("CARD_FAIL_ALLOC", "allocations", "memory"),
        ("CARD_LOST_AT", "operations", "lost"),
    ] {
        let all = total(&counts, count)?;
        for place in places(all) {
            let out = work.path().join(format!("{name}-{place}"));
            let output = precompute(&Card::new()?.with(name, place), &out)?;
            if output.status.success() {
                continue;
            }
            let said = complaint(&output, place)?;
            ensure!(said.contains(word), "{name} at {place}: {said}");
            let output = precompute(&Card::new()?, &out)?;
            ensure!(
                output.status.success(),
                "{name}, after {place}: {}",
                text(&output)
            );
            ensure!(
                sealed(&out)? == sealed(&whole)?,
                "{name}, after {place}: other frames"
            );
        }
    }
    Ok(())
}
