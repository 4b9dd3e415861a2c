//! Provides `metrics.jsonl`: one JSON object a step, flushed, so that a run can be watched and survives a crash.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{Error, Result};

/// What one optimiser step did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: usize,
    /// Passes over the corpus, with the fraction of the current one.
    pub epoch: f64,
    /// Learning rate.
    pub lr: f64,
    /// The weighted total.
    pub loss: f64,
    /// Cross-entropy, nats a target.
    pub ce: f64,
    /// `tau^2 KL(teacher || student)`, nats a target.
    pub kl: f64,
    /// Optimal transport.
    pub ot: f64,
    /// Optimal transport between hidden states.
    pub hidden_ot: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Tokens through the model.
    pub tokens: usize,
    /// Targets among them.
    pub targets: usize,
    /// Tokens a second, this step.
    pub tokens_per_second: f64,
    /// Seconds of this step, without waiting for the teacher.
    pub seconds: f64,
    /// Seconds spent waiting for the teacher.
    pub wait_seconds: f64,
    /// Most solver iterations of one sequence; none without transport.
    pub ot_iterations: Option<usize>,
    /// Largest marginal error.
    pub ot_marginal_error: Option<f64>,
    /// Whether every problem met its tolerance.
    pub ot_converged: Option<bool>,
    /// Resident memory now.
    pub rss_bytes: u64,
    /// Resident memory at most so far.
    pub peak_rss_bytes: u64,
}

/// The open file.
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Creates the file.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io("create", path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Appends one line in a single write.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<()> {
        let mut line = serde_json::to_vec(metrics)
            .map_err(|e| Error::file(&self.path, format!("metrics as JSON: {e}")))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(Error::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_whole_object_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        for step in 1..=2 {
            let metrics = StepMetrics {
                step,
                loss: 0.5,
                ..Default::default()
            };
            log.append(&metrics).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            let last: serde_json::Value =
                serde_json::from_str(text.lines().last().unwrap()).unwrap();
            assert_eq!(
                (text.lines().count(), last["step"].as_u64()),
                (step, Some(step as u64))
            );
            assert!(last["ot_iterations"].is_null());
        }
    }
}
