//! Provides the run directory, held by one process at a time: `config.toml`, `summary.json`, and what a failed step leaves
//! for people.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{lock::RunLock, write_atomically};
use crate::{Error, Result, client::Received, config::SETTINGS_BYTES_MAX};

const CONFIG_FILE: &str = "config.toml";
/// There once a run is finished.
const SUMMARY_FILE: &str = "summary.json";
const SUMMARY_BYTES_MAX: u64 = 1 << 20;

/// One run's directory, locked for as long as this lives.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    _lock: RunLock,
}

impl RunDirectory {
    /// Creates the directory, or takes an empty one.
    ///
    /// # Errors
    /// The directory holds an earlier run, which would be overwritten, or another process is training in it.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        let run = Self {
            path: path.to_owned(),
            _lock: RunLock::take(path)?,
        };
        let own = [
            CONFIG_FILE,
            "metrics.jsonl",
            "adapter",
            "model",
            "checkpoints",
        ];
        match own.iter().find(|name| path.join(name).exists()) {
            Some(found) => Err(Error::file(
                path,
                format!(
                    "holds an earlier run ({found}); `train --resume {}` goes on with it, a new one needs a new directory: --out DIR",
                    path.display()
                ),
            )),
            None => Ok(run),
        }
    }

    /// Takes the directory of an earlier run, to go on with it.
    ///
    /// # Errors
    /// There is none, or another process is training in it.
    pub fn reopen(path: &Path) -> Result<Self> {
        if !path.join(CONFIG_FILE).is_file() {
            return Err(Error::file(
                path,
                format!(
                    "holds no {CONFIG_FILE}, so no run that could be resumed; start one with --out DIR"
                ),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: RunLock::take(path)?,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads the configuration that the run was started with.
    ///
    /// # Errors
    /// A file that cannot be read, or that is no configuration.
    pub fn read_config<C: DeserializeOwned>(&self) -> Result<C> {
        let path = self.join(CONFIG_FILE);
        let text = distill_files::read_text(&path, SETTINGS_BYTES_MAX)
            .map_err(Error::io("read", &path))?;
        toml::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))
    }

    /// Says that the run is finished, and how.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write_summary(&self, summary: &serde_json::Value) -> Result<()> {
        write_atomically(
            &self.join(SUMMARY_FILE),
            format!("{summary:#}\n").as_bytes(),
        )
    }

    /// How the run ended, where it is finished.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn summary(&self) -> Result<Option<serde_json::Value>> {
        let path = self.join(SUMMARY_FILE);
        match distill_files::read(&path, SUMMARY_BYTES_MAX) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| Error::file(&path, e.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// Writes the resolved configuration.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write_config(&self, config: &impl Serialize) -> Result<()> {
        let text = toml::to_string(config).map_err(|e| {
            Error::Config(format!("the configuration cannot be written as TOML: {e}"))
        })?;
        write_atomically(&self.join(CONFIG_FILE), text.as_bytes())
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
        drop(run);
        let message = RunDirectory::create(&path).unwrap_err().to_string();
        assert!(
            message.contains("earlier run") && message.contains("--out"),
            "{message}"
        );
    }
}
