//! Provides one card in software: a directory that all processes of a test share, and what the card wrote there.

use std::process::Command;

use anyhow::{Result, bail, ensure};
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

    /// What the only process that used it did, as the card counted it.
    pub fn counts(&self) -> Result<Value> {
        let mut counts = Vec::new();
        for entry in std::fs::read_dir(self.directory.path())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("counts-") && name.ends_with(".json") {
                counts.push(path);
            }
        }
        let [path] = &counts[..] else {
            bail!("{} processes used the card", counts.len());
        };
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// Refuses a card that refused something.
    pub fn accepted_all(&self) -> Result<()> {
        let refusals = std::fs::read_to_string(self.directory.path().join("refusals"));
        let refusals = refusals.unwrap_or_default();
        ensure!(refusals.is_empty(), "{refusals}");
        Ok(())
    }
}
