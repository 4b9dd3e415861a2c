//! Counts what an update of the adapters costs a card: a launch for each kind of moments, whatever the number of adapters.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    card::Card,
    harness::text,
    programs::{Pair, adapter},
};

/// An update by AdamW.
const UPDATES: [&str; 2] = ["adamw", "adamw_8bit"];

fn is_launch(call: &Value, names: &[&str]) -> bool {
    call["kind"] == "launch" && names.iter().any(|name| call["name"] == *name)
}

/// What the last step of a run asked of the card, from the gradients' norms to the update.
fn last_update(flags: &[&str]) -> Result<Vec<Value>> {
    let (pair, card) = (Pair::new()?, Card::new()?);
    let teacher = pair.serve(&card, &["--device", "cuda"]);
    let trace = pair.work.path().join("trace");
    let flags = [&["--device", "cuda"], flags].concat();
    let (mut command, out) = pair.train(&card, &teacher, "traced", &flags);
    let output = command.env("CARD_TRACE", &trace).output()?;
    ensure!(
        output.status.success(),
        "{}\n{}",
        text(&output),
        teacher.log()
    );
    card.accepted_all()?;
    ensure!(!adapter(&out)?.is_empty(), "no adapter");
    let lines = std::fs::read_to_string(&trace)?;
    let calls = lines.lines().map(serde_json::from_str);
    let mut calls = calls.collect::<serde_json::Result<Vec<Value>>>()?;
    let last = calls.iter().rposition(|call| is_launch(call, &UPDATES));
    calls.truncate(last.context("no update")? + 1);
    let first = calls.iter().rposition(|call| is_launch(call, &["squares"]));
    Ok(calls.split_off(first.context("no norms")?))
}

#[test]
fn an_update_is_a_few_launches_and_reads_the_card_once() -> Result<()> {
    let both = ["--optimizer", "adamw8bit", "--lora-rank", "64"];
    let groups = [&both[..], &["--lora-b-lr-ratio", "16"]].concat();
    // All matrices that learn at the other rate are large enough for 8 bits.
    for (flags, launches) in [(&[][..], 3), (&both[..], 4), (&groups[..], 5)] {
        let calls = last_update(flags)?;
        let of = |kind: &str| calls.iter().filter(|call| call["kind"] == kind).count();
        // Norms and their sum, then the kinds of moments by the groups of learning rates.
        ensure!(of("launch") == launches, "{flags:?}: {calls:?}");
        ensure!(of("device to host") == 1, "{flags:?}: {calls:?}");
        ensure!(of("device to device") == 0, "{flags:?}: {calls:?}");
        // The tables of both.
        ensure!(of("host to device") == 1, "{flags:?}: {calls:?}");
    }
    Ok(())
}
