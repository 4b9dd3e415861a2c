/*! Provides TensorBoard's event files: the run's numbers by step, for `tensorboard --logdir`.

```text
 StepMetrics, EvalMetrics ──> event: protobuf ──> record: length, crc32c ──> RUN/tensorboard/NAME/events.out.tfevents.*
```

TensorBoard calls a run by the directory below `--logdir` that its files are in, so they are in one of the run's name.
A process writes a file of its own. A resumed run says in its first records from which step on older files do not count, so
that steps which were lost and done again are shown once.
*/

mod event;

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use prost::Message;

use super::{EvalMetrics, StepMetrics};
use crate::{Error, Result, files};
use event::{Event, SessionLog, SessionStatus, Summary, Value, What};

/// Of every file: TensorBoard takes those whose names hold it for event files.
const FILE_PREFIX: &str = "events.out.tfevents.";
/// What the first record of a file says.
const FILE_VERSION: &str = "brain.Event:2";

/// The event file of this process.
pub struct TensorBoard {
    file: File,
    path: PathBuf,
}

impl TensorBoard {
    /// Starts a file below `root` for the run `name` that has done `steps_done` steps; beside its earlier files, which a directory
    /// that was renamed meanwhile has under its name of before.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn open(root: &Path, name: &OsStr, steps_done: usize) -> Result<Self> {
        files::create_directory(root)?;
        let begun = begun_directory(root)?;
        let directory = begun.map_or_else(|| root.join(name), |(directory, _)| directory);
        Self::open_at(&directory, steps_done, now())
    }

    /// When the run's first process opened its file, in seconds since 1970; `None` where there is none.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn begun(root: &Path) -> Result<Option<u64>> {
        let begun = if root.is_dir() {
            begun_directory(root)?
        } else {
            None
        };
        Ok(begun.and_then(|(_, seconds)| seconds.into_iter().min()))
    }

    fn open_at(directory: &Path, steps_done: usize, wall_time: f64) -> Result<Self> {
        files::create_directory(directory)?;
        let earlier = earlier_files(directory)?;
        // TensorBoard reads files in the order of their names, whatever the clock did since.
        let seconds = earlier.iter().copied().fold(wall_time as u64, u64::max);
        let name = format!(
            "{FILE_PREFIX}{seconds:010}.student-trainer.{:05}",
            earlier.len()
        );
        let path = directory.join(name);
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        let mut board = Self { file, path };
        board.write(wall_time, 0, What::FileVersion(FILE_VERSION.to_owned()))?;
        if !earlier.is_empty() {
            let start = SessionLog {
                status: SessionStatus::Start.into(),
            };
            board.write(wall_time, steps_done + 1, What::SessionLog(start))?;
        }
        Ok(board)
    }

    /// What one step did.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.scalars(now(), metrics.step, &step_scalars(metrics))
    }

    /// What one evaluation found.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn eval(&mut self, metrics: &EvalMetrics) -> Result<()> {
        self.scalars(now(), metrics.step, &eval_scalars(metrics))
    }

    fn scalars(&mut self, wall_time: f64, step: usize, scalars: &[(&str, f64)]) -> Result<()> {
        let value = scalars.iter().map(|&(tag, value)| Value {
            tag: tag.to_owned(),
            simple_value: Some(value as f32),
        });
        let value = value.collect();
        self.write(wall_time, step, What::Summary(Summary { value }))
    }

    /// Appends one record in a single write, so that who watches never sees half of one.
    fn write(&mut self, wall_time: f64, step: usize, what: What) -> Result<()> {
        let event = Event {
            wall_time,
            step: step as i64,
            what: Some(what),
        };
        self.file
            .write_all(&record(&event.encode_to_vec()))
            .map_err(Error::io("write", &self.path))
    }
}

/// TFRecord's framing: length (u64), masked crc32c of the length (u32), the bytes, their masked crc32c (u32), all
/// little-endian.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    [
        length.as_slice(),
        &masked_crc(&length).to_le_bytes(),
        bytes,
        &masked_crc(bytes).to_le_bytes(),
    ]
    .concat()
}

/// A crc that may itself be under a crc: rotated, and moved by a constant.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// The directory at or below `root` that a run's event files are in, with the seconds in their names.
fn begun_directory(root: &Path) -> Result<Option<(PathBuf, Vec<u64>)>> {
    let below = files::list(root)?;
    let below = below.into_iter().filter(|path| path.is_dir());
    for directory in [root.to_owned()].into_iter().chain(below) {
        let seconds = earlier_files(&directory)?;
        if !seconds.is_empty() {
            return Ok(Some((directory, seconds)));
        }
    }
    Ok(None)
}

/// The seconds in the names of the event files that are there.
fn earlier_files(directory: &Path) -> Result<Vec<u64>> {
    let mut seconds = Vec::new();
    for path in files::list(directory)? {
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(rest) = name.and_then(|name| name.strip_prefix(FILE_PREFIX)) {
            let digits = rest.split('.').next().unwrap_or_default();
            seconds.push(digits.parse().unwrap_or(0));
        }
    }
    Ok(seconds)
}

/// Seconds since 1970.
fn now() -> f64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// Names before the slash are TensorBoard's sections. Parts of the loss without weight are left out, as they are zero.
fn step_scalars(metrics: &StepMetrics) -> Vec<(&'static str, f64)> {
    let mut scalars = vec![
        ("loss/total", metrics.loss),
        ("loss/ce", metrics.ce),
        ("train/lr", metrics.lr),
        ("train/grad_norm", metrics.grad_norm),
        ("train/epoch", metrics.epoch),
        ("speed/tokens_per_second", metrics.tokens_per_second),
        ("speed/seconds", metrics.seconds),
        ("speed/wait_seconds", metrics.wait_seconds),
        ("memory/rss_mb", metrics.rss_bytes as f64 / 1e6),
        ("memory/peak_rss_mb", metrics.peak_rss_bytes as f64 / 1e6),
    ];
    let parts = [
        ("loss/kl", metrics.kl),
        ("loss/reverse_kl", metrics.reverse_kl),
        ("loss/jsd", metrics.jsd),
        ("loss/ot", metrics.ot),
    ];
    scalars.extend(parts.into_iter().filter(|(_, value)| *value != 0.0));
    let solver = [
        (
            "transport/iterations",
            metrics.ot_iterations.map(|n| n as f64),
        ),
        ("transport/marginal_error", metrics.ot_marginal_error),
    ];
    scalars.extend(present(solver));
    scalars
}

fn eval_scalars(metrics: &EvalMetrics) -> Vec<(&'static str, f64)> {
    let mut scalars = vec![
        ("eval/ce", metrics.ce),
        ("eval/perplexity", metrics.perplexity),
    ];
    scalars.extend(present([
        ("eval/kl", metrics.kl),
        ("eval/top1_agreement", metrics.top1_agreement),
        ("eval/top5_agreement", metrics.top5_agreement),
        ("eval/exact_match", metrics.exact_match),
    ]));
    scalars
}

fn present<const N: usize>(
    values: [(&'static str, Option<f64>); N],
) -> impl Iterator<Item = (&'static str, f64)> {
    let values = values.into_iter();
    values.filter_map(|(tag, value)| Some((tag, value?)))
}

#[cfg(test)]
mod tests;
