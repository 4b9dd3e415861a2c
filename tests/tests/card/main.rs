//! Runs the CUDA build of both programs on the card in software (`tests/card`), which refuses what a card refuses.
//!
//! `tests/card/run.sh` builds the card and calls these; without it in the environment they fail.

#[path = "../integration/harness.rs"]
#[expect(dead_code, reason = "the other tests use the rest of it")]
mod harness;

mod answers;
mod card;
mod faults;
mod programs;
mod rows;
mod updates;
