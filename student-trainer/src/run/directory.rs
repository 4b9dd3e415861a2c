//! Provides the run directory, held by one process at a time: `config.toml`, `summary.json`, and what a failed step leaves
//! for people.

use std::{
    cell::Cell,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
};

use distill_program::lock::{Attempt, Lock};
use serde::{Serialize, de::DeserializeOwned};

use super::leftovers::{self, leftovers};
use crate::{
    Error, Result,
    client::Received,
    config::FILE_BYTES_MAX,
    files::{self, write_atomically, write_json},
};

pub(crate) const CONFIG_FILE: &str = "config.toml";
/// Directories from a run's results up to the run: a checkpoint's adapter is the deepest.
const DEPTH_IN_RUN: usize = 3;
pub(super) const LOCK_FILE: &str = ".lock";
/// What was planned of the run's memory.
pub(crate) const MEMORY_FILE: &str = "memory.json";
/// What is known of the projections of hidden states that were fitted.
pub(crate) const PROJECTION_REPORT: &str = "projection.json";
/// What the student answers to a few prompts, before it is trained and after.
pub(crate) const ANSWERS_FILE: &str = "answers.json";
/// What a finished run's plans have to do with the links of its records.
pub(crate) const PLANS_FILE: &str = "plans.json";
/// Where the result of training adapters is.
pub(crate) const ADAPTER_DIRECTORY: &str = "adapter";
/// There once a run is finished.
pub(crate) const SUMMARY_FILE: &str = "summary.json";
const SUMMARY_BYTES_MAX: u64 = 1 << 20;

/// One run's directory, locked for as long as this lives. Dropped before the run has begun, it leaves what it found.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// None where the process that started this one holds it.
    lock: Option<Lock>,
    /// Whether there was no such directory before.
    is_new: bool,
    has_begun: Cell<bool>,
}

impl RunDirectory {
    /// Creates the directory, or takes one without a checkpoint or a result: an empty one, or what a start that failed left.
    ///
    /// # Errors
    /// The directory holds a run that would be overwritten, or somebody's other files; or another process is training in it.
    pub fn create(path: &Path) -> Result<Self> {
        // Before anything is written, so that a refusal leaves no lock.
        leftovers(path)?;
        let is_new = !path.exists();
        files::create_directory(path)?;
        let run = Self {
            path: path.to_owned(),
            lock: Some(take_lock(path)?),
            is_new,
            has_begun: Cell::new(false),
        };
        // Someone may have begun and ended in between.
        leftovers(path)?;
        Ok(run)
    }

    /// Begins the run, a new one or one that goes on: removes what a start that failed left, and writes the resolved
    /// configuration. Everything that can be checked has been checked by now.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn begin(&self, config: &impl Serialize) -> Result<()> {
        // What a run that goes on left is its own.
        let left = if self.has_begun.replace(true) {
            Vec::new()
        } else {
            leftovers(&self.path)?
        };
        if !left.is_empty() {
            let name = |path: &PathBuf| path.file_name().map(|name| name.display().to_string());
            let names: Vec<String> = left.iter().filter_map(name).collect();
            tracing::info!(
                "{} holds a run without a checkpoint ({}); it is started anew",
                self.path.display(),
                names.join(", ")
            );
            leftovers::remove(&left)?;
        }
        write_atomically(&self.join(CONFIG_FILE), config_text(config)?.as_bytes())
    }

    /// Takes the directory of an earlier run, to go on with it.
    ///
    /// # Errors
    /// There is none, or another process is training in it.
    pub fn reopen(path: &Path) -> Result<Self> {
        require_run(path)?;
        Ok(Self {
            path: path.to_owned(),
            lock: Some(take_lock(path)?),
            is_new: false,
            has_begun: Cell::new(true),
        })
    }

    /// The directory of a run under way, as the processes see it that the one with the lock starts.
    pub fn enter(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            lock: None,
            is_new: false,
            has_begun: Cell::new(true),
        }
    }

    /// Keeps others out until the last of the processes has ended that this one starts from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn share(&self) -> Result<()> {
        let shared = self.lock.as_ref().map(Lock::share).transpose();
        shared.map_err(Error::io("share", &self.join(LOCK_FILE)))?;
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What people call the run: the directory's name.
    pub fn name(&self) -> OsString {
        let whole = fs::canonicalize(&self.path);
        let whole = whole.as_deref().unwrap_or(&self.path);
        whole.file_name().unwrap_or(OsStr::new("run")).to_owned()
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
        files::read_toml(&self.join(CONFIG_FILE), FILE_BYTES_MAX)
    }

    /// Says that the run is finished, and how.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write_summary(&self, summary: &serde_json::Value) -> Result<()> {
        write_json(&self.join(SUMMARY_FILE), summary)
    }

    /// How the run ended, where it is finished.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn summary(&self) -> Result<Option<serde_json::Value>> {
        files::read_json_if_there(&self.join(SUMMARY_FILE), SUMMARY_BYTES_MAX)
    }

    /// Leaves the batch of a failed step: every frame as it came and `report.json`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn dump_failed_step(
        &self,
        step: usize,
        rank: usize,
        what: &str,
        parameters: &[&str],
        batch: &[Received],
    ) -> Result<PathBuf> {
        let directory = self.join(&format!("failed-step-{step}"));
        files::create_directory(&directory)?;
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
        let name = match rank {
            0 => "report.json".to_owned(),
            rank => format!("report-{rank}.json"),
        };
        write_json(&directory.join(name), &report)?;
        Ok(directory)
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if !self.has_begun.get() {
            self.lock.as_ref().map(Lock::remove);
            if self.is_new {
                // Whatever is in it by now is somebody's; then it stays.
                let _ = fs::remove_dir(&self.path);
            }
        }
    }
}

/// The run that a result lies in: its adapter, its model, its best, or one of a checkpoint.
pub(crate) fn run_above(result: &Path) -> Option<PathBuf> {
    let result = result.canonicalize().ok()?;
    let mut above = result.ancestors().skip(1).take(DEPTH_IN_RUN);
    let run = above.find(|directory| directory.join(CONFIG_FILE).is_file());
    run.map(Path::to_owned)
}

/// Refuses a directory that holds no run.
///
/// # Errors
/// It does not; with what one is.
pub(crate) fn require_run(path: &Path) -> Result<()> {
    let reason = if path.join(CONFIG_FILE).is_file() {
        return Ok(());
    } else if path.is_dir() {
        format!("holds no {CONFIG_FILE}, so it is no run directory")
    } else if path.exists() {
        "is no directory, so it is no run directory".to_owned()
    } else {
        "is not there".to_owned()
    };
    Err(Error::file(
        path,
        format!(
            "{reason}; a run directory is what `student-trainer train --out DIR` makes, with {CONFIG_FILE}, metrics.jsonl and \
             checkpoints/ in it: name that one"
        ),
    ))
}

/// Who trains in this directory now, if anybody does.
///
/// # Errors
/// The file system refuses.
pub(crate) fn who_trains_in(directory: &Path) -> Result<Option<String>> {
    if !directory.is_dir() {
        return Ok(None);
    }
    Ok(match Lock::take(&directory.join(LOCK_FILE))? {
        Attempt::Taken(_) => None,
        Attempt::HeldBy(holder) => Some(holder),
    })
}

/// Keeps a second trainer out of `directory`.
fn take_lock(directory: &Path) -> Result<Lock> {
    match Lock::take(&directory.join(LOCK_FILE))? {
        Attempt::Taken(lock) => Ok(lock),
        Attempt::HeldBy(holder) => Err(Error::file(
            directory,
            format!(
                "{holder} is training in this directory; wait for it or stop it, or name another with --out"
            ),
        )),
    }
}

/// The text of `config.toml`.
///
/// # Errors
/// None in practice.
pub(crate) fn config_text(config: &impl Serialize) -> Result<String> {
    toml::to_string(config)
        .map_err(|e| Error::Config(format!("the configuration cannot be written as TOML: {e}")))
}

fn frame_file(received: &Received) -> String {
    format!("frame-{}.bin", received.context.index)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn config() -> BTreeMap<&'static str, f64> {
        BTreeMap::from([("lr", 1.0), ("out", 0.0)])
    }

    fn refusal(path: &Path) -> String {
        RunDirectory::create(path).unwrap_err().to_string()
    }

    #[test]
    fn an_earlier_run_is_not_overwritten() {
        for result in [
            "checkpoints/step-000001/state.toml",
            "adapter/adapter_model.safetensors",
            "model/model.safetensors",
            "model/model-00001-of-00002.safetensors",
            SUMMARY_FILE,
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("run");
            RunDirectory::create(&path)
                .unwrap()
                .begin(&config())
                .unwrap();
            let file = path.join(result);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            let message = refusal(&path);
            assert!(
                message.contains("earlier run") && message.contains("--out"),
                "{result}: {message}"
            );
            assert!(file.exists());
        }
    }

    #[test]
    fn a_start_that_fails_leaves_nothing_and_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        drop(RunDirectory::create(&path).unwrap());
        assert!(!path.exists());
        // An empty directory stays one.
        fs::create_dir(&path).unwrap();
        drop(RunDirectory::create(&path).unwrap());
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn what_a_failed_start_left_is_not_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let first = RunDirectory::create(&path).unwrap();
        first.begin(&config()).unwrap();
        for file in [
            "metrics.jsonl",
            "eval.jsonl",
            "report.html",
            "report.md",
            "answers.json",
            "projection.json",
            "plans.json",
            "tensorboard/events",
            "checkpoints/.tmp-step-000001/state.toml",
            "model/config.json",
            ".tmpAbC",
            ".unfinished-AbC",
            "failed-step-2/report.json",
            "train.log",
        ] {
            let file = path.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "old").unwrap();
        }
        // Not while it runs.
        assert!(refusal(&path).contains("is training in this directory"));
        drop(first);
        let again = RunDirectory::create(&path).unwrap();
        assert!(path.join("metrics.jsonl").exists());
        again.begin(&config()).unwrap();
        let names = fs::read_dir(&path).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        // What people may still read, beside the new run's own.
        let expected = [".lock", CONFIG_FILE, "failed-step-2", "train.log"];
        assert_eq!(names, expected);
    }

    #[test]
    fn what_is_no_run_is_refused_with_what_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for (path, reason) in [
            (dir.path().to_owned(), "holds no config.toml"),
            (file, "is no directory"),
            (dir.path().join("gone"), "is not there"),
        ] {
            let message = RunDirectory::reopen(&path).unwrap_err().to_string();
            for expected in [reason, "train --out DIR", &path.display().to_string()] {
                assert!(message.contains(expected), "{message}");
            }
        }
    }

    #[test]
    fn somebodys_other_files_are_refused_and_stay() {
        for strange in ["thesis.tex", "src", ".git", "metrics.jsonl.bak"] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join(strange)).unwrap();
            let message = refusal(dir.path());
            assert!(
                message.contains(strange) && message.contains("--out"),
                "{message}"
            );
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
        // Of another program, by the names that a run's files have.
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("metrics.jsonl"), "mine").unwrap();
        fs::write(dir.path().join(CONFIG_FILE), "title = 'blog'").unwrap();
        assert!(refusal(dir.path()).contains("2 things"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(refusal(file.path()).contains("directory"));
    }
}
