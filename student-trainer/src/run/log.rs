//! Provides the run's log: one place for what steps and evaluations measured, in files that a resumed run goes on with.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{EvalMetrics, RunDirectory, StepMetrics, tensorboard::TensorBoard};
use crate::{Error, Result, files};

/// How long both files are: what a checkpoint remembers, so that a resumed run repeats no line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPosition {
    /// Of `metrics.jsonl`.
    pub metrics_bytes: u64,
    /// Of `eval.jsonl`.
    pub eval_bytes: u64,
}

/// `metrics.jsonl` with one line a step and `eval.jsonl` with one an evaluation, and both for TensorBoard.
pub struct RunLog {
    metrics: JsonLines,
    evals: JsonLines,
    board: TensorBoard,
}

impl RunLog {
    /// Starts both files anew.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn create(run: &RunDirectory) -> Result<Self> {
        Self::resume(run, LogPosition::default(), 0)
    }

    /// Goes on at `position`, `steps_done` steps into the run: what was written after it is cut off, because the steps behind it are done again.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn resume(run: &RunDirectory, position: LogPosition, steps_done: usize) -> Result<Self> {
        let mut log = Self {
            metrics: JsonLines::at(run.join("metrics.jsonl"), position.metrics_bytes)?,
            evals: JsonLines::at(run.join("eval.jsonl"), position.eval_bytes)?,
            board: TensorBoard::open(&run.join("tensorboard"), &run.name(), steps_done)?,
        };
        // Seen at once by whoever watches the run; most runs have no evaluation.
        log.metrics.open()?;
        Ok(log)
    }

    /// What one step did.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.metrics.append(metrics)?;
        counter!("ot_distill_train_tokens_total").increment(metrics.tokens as u64);
        measured("ot_distill_train", metrics);
        self.board.step(metrics)
    }

    /// What one evaluation found.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn eval(&mut self, metrics: &EvalMetrics) -> Result<()> {
        self.evals.append(metrics)?;
        measured("ot_distill_eval", metrics);
        self.board.eval(metrics)
    }

    /// How long both files are, once they are on the disk.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn sync(&mut self) -> Result<LogPosition> {
        self.metrics.sync()?;
        self.evals.sync()?;
        Ok(LogPosition {
            metrics_bytes: self.metrics.bytes,
            eval_bytes: self.evals.bytes,
        })
    }
}

/// Shows every number of a line to whoever monitors the run.
fn measured(prefix: &str, line: &impl Serialize) {
    // What cannot be said as JSON was refused by the file before.
    let Ok(Value::Object(fields)) = serde_json::to_value(line) else {
        return;
    };
    for (name, value) in fields {
        let number = value.as_bool().map(f64::from).or(value.as_f64());
        if let Some(number) = number {
            gauge!(format!("{prefix}_{name}")).set(number);
        }
    }
}

/// A file of JSON objects, one a line; it appears with its first line.
struct JsonLines {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
}

impl JsonLines {
    /// The file at `path`, cut to `bytes`.
    fn at(path: PathBuf, bytes: u64) -> Result<Self> {
        let exists = path.exists();
        let mut lines = Self {
            path,
            file: None,
            bytes,
        };
        if exists || bytes > 0 {
            lines.open()?;
        }
        Ok(lines)
    }

    fn open(&mut self) -> Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.cut()?,
        };
        Ok(self.file.insert(file))
    }

    fn cut(&mut self) -> Result<File> {
        let path: &Path = &self.path;
        let mut file = files::open_or_create(path)?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        if length < self.bytes {
            tracing::warn!(
                "{} has {length} bytes where the checkpoint knows {}: lines of before are missing",
                path.display(),
                self.bytes
            );
            self.bytes = length;
        }
        file.set_len(self.bytes)
            .map_err(Error::io("shorten", path))?;
        file.seek(SeekFrom::End(0))
            .map_err(Error::io("read", path))?;
        Ok(file)
    }

    /// Appends one line in a single write.
    fn append(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value)
            .map_err(|e| Error::file(&self.path, format!("a line as JSON: {e}")))?;
        line.push(b'\n');
        let written = self.open()?.write_all(&line);
        written.map_err(Error::io("write", &self.path))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        match &self.file {
            Some(file) => file.sync_data().map_err(Error::io("sync", &self.path)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_that_are_no_file_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(&dir.path().join("run")).unwrap();
        std::os::unix::fs::symlink("/dev/null", run.join("metrics.jsonl")).unwrap();
        let error = RunLog::create(&run).err().unwrap().to_string();
        assert!(
            error.contains("metrics.jsonl") && error.contains("a device"),
            "{error}"
        );
    }

    fn step(step: usize) -> StepMetrics {
        StepMetrics {
            step,
            loss: 0.5,
            ..Default::default()
        }
    }

    fn steps(run: &RunDirectory) -> Vec<u64> {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let line = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
        text.lines()
            .map(|text| line(text)["step"].as_u64().unwrap())
            .collect()
    }

    #[test]
    fn every_line_is_a_whole_object_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(&dir.path().join("run")).unwrap();
        let mut log = RunLog::create(&run).unwrap();
        for count in 1..=2 {
            log.step(&step(count)).unwrap();
            assert_eq!(steps(&run).len(), count);
        }
        assert!(!run.join("eval.jsonl").exists());
    }

    #[test]
    fn what_came_after_the_checkpoint_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(&dir.path().join("run")).unwrap();
        let mut log = RunLog::create(&run).unwrap();
        log.step(&step(1)).unwrap();
        let position = log.sync().unwrap();
        log.step(&step(2)).unwrap();
        log.eval(&EvalMetrics::default()).unwrap();
        // A crash in the middle of a line.
        let path = run.join("metrics.jsonl");
        let mut torn = std::fs::read(&path).unwrap();
        torn.truncate(torn.len() - 5);
        std::fs::write(&path, torn).unwrap();

        let mut log = RunLog::resume(&run, position, 1).unwrap();
        assert_eq!(std::fs::read(run.join("eval.jsonl")).unwrap(), b"");
        log.step(&step(2)).unwrap();
        assert_eq!(steps(&run), [1, 2]);
    }
}
