//! Provides one card in software: a directory that all processes of a test share, and what the card wrote there.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

/// Its directory; gone when dropped.
pub struct Card {
    directory: TempDir,
    more: Vec<(String, String)>,
}

impl Card {
    /// A card that nobody has used yet.
    pub fn new() -> Result<Self> {
        let there = std::env::var_os("CARD_HOME").is_some();
        ensure!(
            there,
            "no card in software: tests/card/run.sh builds one and runs these tests"
        );
        Ok(Self {
            directory: tempfile::tempdir()?,
            more: Vec::new(),
        })
    }

    /// The card with another setting; see the README of tests/card.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.more.push((name.to_owned(), value.to_string()));
        self
    }

    /// The environment of a process that is to use the card.
    pub fn variables(&self) -> Vec<(&str, &str)> {
        let directory = self
            .directory
            .path()
            .to_str()
            .expect("temporary paths are UTF-8");
        let more = self
            .more
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        [("CARD_DIR", directory)].into_iter().chain(more).collect()
    }

    /// The command, on this card.
    pub fn run(&self, mut command: Command) -> Command {
        command.envs(self.variables());
        command
    }

    /// What the process with this number did, as the card counted it.
    pub fn counts(&self, process: u32) -> Result<Value> {
        let path = self.directory.path().join(format!("counts-{process}.json"));
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Refuses a card that refused something.
    pub fn accepted_all(&self) -> Result<()> {
        let refusals = std::fs::read_to_string(self.directory.path().join("refusals"));
        let refusals = refusals.unwrap_or_default();
        ensure!(refusals.is_empty(), "{refusals}");
        Ok(())
    }
}
