//! Provides the run directory: `config.toml`, `metrics.jsonl`, `adapter/`, and what a failed step leaves for people.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::write_atomically;
use crate::{Error, Result, client::Received};

/// One run's directory.
#[derive(Clone, Debug)]
pub struct RunDirectory(PathBuf);

impl RunDirectory {
    /// Creates the directory, or takes an empty one.
    ///
    /// # Errors
    /// The directory holds an earlier run, which would be overwritten.
    pub fn create(path: &Path) -> Result<Self> {
        let own = ["config.toml", "metrics.jsonl", "adapter"];
        if let Some(found) = own.iter().find(|name| path.join(name).exists()) {
            return Err(Error::file(
                path,
                format!("holds an earlier run ({found}); name a new directory with --out"),
            ));
        }
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        Ok(Self(path.to_owned()))
    }

    /// A path inside.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes the resolved configuration.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write_config(&self, config: &impl Serialize) -> Result<()> {
        let text = toml::to_string(config).map_err(|e| {
            Error::Config(format!("the configuration cannot be written as TOML: {e}"))
        })?;
        write_atomically(&self.join("config.toml"), text.as_bytes())
    }

    /// Leaves the batch of a failed step: every frame as it came and `report.json`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn dump_failed_step(
        &self,
        step: usize,
        what: &str,
        parameters: &[&str],
        batch: &[Received],
    ) -> Result<PathBuf> {
        let directory = self.join(&format!("failed-step-{step}"));
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let frames: Vec<_> = batch
            .iter()
            .map(|received| {
                serde_json::json!({
                    "file": frame_file(received),
                    "index": received.context.index,
                    "shard": received.context.shard,
                    "plan_fingerprint": received.context.plan.to_hex(),
                    "sequence_id": received.frame.sequence_id,
                    "tokens": received.frame.token_ids.len(),
                    "text": received.frame.text,
                })
            })
            .collect();
        for received in batch {
            write_atomically(&directory.join(frame_file(received)), &received.bytes)?;
        }
        let report = serde_json::json!({
            "step": step,
            "not_finite": what,
            "parameters": parameters,
            "frames": frames,
        });
        write_atomically(
            &directory.join("report.json"),
            format!("{report:#}").as_bytes(),
        )?;
        Ok(directory)
    }
}

fn frame_file(received: &Received) -> String {
    format!("frame-{}.bin", received.context.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_run_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let run = RunDirectory::create(&path).unwrap();
        run.write_config(&std::collections::BTreeMap::from([("lr", 1.0)]))
            .unwrap();
        let message = RunDirectory::create(&path).unwrap_err().to_string();
        assert!(
            message.contains("earlier run") && message.contains("--out"),
            "{message}"
        );
    }
}
