//! Provides what a run found: as `summary.json` for programs, as a table for people.

use std::{fmt, path::Path};

use distill_program::output;
use serde::{Deserialize, Serialize};

use super::Job;
use crate::{Error, Result};

/// A mean over seeds with its sample standard deviation; one seed has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation over seeds.
    pub deviation: Option<f64>,
}

impl Spread {
    /// Mean and deviation of some values; NaN of none.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self {
            mean,
            deviation: (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The loss, or `before` or `teacher`.
    pub name: String,
    /// Share of exact answers on unseen numbers.
    pub accuracy_numbers: Option<Spread>,
    /// Share of exact answers on unseen templates.
    pub accuracy_templates: Option<Spread>,
    /// Cross-entropy, nats a target, mean of the held-out texts.
    pub ce: Spread,
    /// KL to the teacher, nats a target, mean of the held-out texts.
    pub kl: Spread,
    /// Seconds that the training took, its start included.
    pub seconds: f64,
    /// Tokens through the student in a second of its steps.
    pub tokens_per_second: Option<f64>,
    /// Most memory of the trainer.
    pub peak_rss_bytes: Option<u64>,
}

/// Loss by step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curve {
    /// The variant.
    pub name: String,
    /// Cross-entropy.
    pub ce: Vec<f64>,
    /// KL.
    pub kl: Vec<f64>,
}

/// A problem with everybody's answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The question.
    pub prompt: String,
    /// The corpus's answer.
    pub reference: String,
    /// Who, what, and whether it was right.
    pub answers: Vec<(String, String, bool)>,
}

/// A transport plan with the tokens on its axes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TransportPlan {
    /// Whose.
    #[serde(default)]
    pub title: String,
    /// The targets.
    pub tokens: Vec<String>,
    /// Rows of the student, columns of the teacher.
    pub plan: Vec<Vec<f32>>,
}

/// Peak memory of both processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeakMemory {
    /// teacher-server.
    pub teacher: u64,
    /// student-trainer, the largest of all runs.
    pub trainer: u64,
}

/// Everything that a run found.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// What was run.
    pub title: String,
    /// Steps, batch size, learning rate and seeds, in words.
    pub setting: String,
    /// The table.
    pub rows: Vec<Row>,
    /// Tokens in a second of the teacher's computing.
    pub teacher_tokens_per_second: f64,
    /// Bytes of a frame for each of its tokens.
    pub bytes_per_token: f64,
    /// Peak memory.
    pub peak_rss_bytes: PeakMemory,
    /// Seconds of the whole run.
    pub seconds: f64,
    /// Loss by step, of the first seed.
    pub curves: Vec<Curve>,
    /// Some answers.
    pub samples: Vec<Sample>,
    /// Some plans.
    pub plans: Vec<TransportPlan>,
}

impl Summary {
    pub(super) fn new(job: &Job) -> Self {
        let training = &job.training;
        Self {
            title: job.title.clone(),
            setting: format!(
                "{} steps of {} sequences of at most {} tokens, learning rate {}, {} seed(s); {} held-out sequences a split",
                training.steps,
                training.batch_size,
                training.seq_len,
                training.lr,
                training.seeds.len(),
                job.evaluation_sequences
            ),
            rows: Vec::new(),
            teacher_tokens_per_second: 0.0,
            bytes_per_token: 0.0,
            peak_rss_bytes: PeakMemory::default(),
            seconds: 0.0,
            curves: Vec::new(),
            samples: Vec::new(),
            plans: Vec::new(),
        }
    }

    /// What OT brought on this run, in one sentence; empty where nothing can be compared.
    pub fn verdict(&self) -> String {
        let find = |name: &str| self.rows.iter().find(|row| row.name == name);
        let Some(without) = find("CE + KL") else {
            return String::new();
        };
        let with: Vec<&Row> = self
            .rows
            .iter()
            .filter(|row| row.name.contains("OT ("))
            .collect();
        let score = |row: &Row| {
            let accuracies = [row.accuracy_numbers, row.accuracy_templates];
            let known: Vec<f64> = accuracies.iter().flatten().map(|a| a.mean).collect();
            if known.is_empty() {
                -row.kl.mean
            } else {
                known.iter().sum::<f64>() / known.len() as f64
            }
        };
        let Some(best) = with.iter().max_by(|a, b| score(a).total_cmp(&score(b))) else {
            return String::new();
        };
        let (gain, unit) = match best.accuracy_numbers {
            Some(_) => (100.0 * (score(best) - score(without)), "points of accuracy"),
            None => (score(best) - score(without), "nats of KL"),
        };
        let seeds = match (&without.ce.deviation, &best.accuracy_numbers) {
            (Some(_), _) => "",
            (None, Some(_)) => {
                " One seed: differences of a few points are noise; --full runs three."
            }
            // Models that somebody named are compared with one seed only.
            (None, None) => " One seed: small differences are noise.",
        };
        let name = &best.name;
        if gain.abs() < 0.005 {
            return format!(
                "OT makes no difference here: its best row, {name}, is level with CE + KL.{seeds}"
            );
        }
        if gain > 0.0 {
            format!("Over CE + KL, {name} gains {gain:.2} {unit}.{seeds}")
        } else {
            format!(
                "OT does not help here: its best row, {name}, is {:.2} {unit} behind CE + KL.{seeds}",
                -gain
            )
        }
    }

    /// The object of `summary.json`.
    pub fn to_json(&self) -> serde_json::Value {
        let mean = |spread: Option<Spread>| spread.map(|spread| spread.mean);
        let deviation = |spread: Option<Spread>| spread.and_then(|spread| spread.deviation);
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "name": row.name,
                    "accuracy_numbers": mean(row.accuracy_numbers),
                    "accuracy_templates": mean(row.accuracy_templates),
                    "ce": row.ce.mean,
                    "kl": row.kl.mean,
                    "seconds": if row.seconds.is_nan() { None } else { Some(row.seconds) },
                    "tokens_per_second": row.tokens_per_second,
                    "peak_rss_bytes": row.peak_rss_bytes,
                    "deviation": {
                        "accuracy_numbers": deviation(row.accuracy_numbers),
                        "accuracy_templates": deviation(row.accuracy_templates),
                        "ce": row.ce.deviation,
                        "kl": row.kl.deviation,
                    },
                })
            })
            .collect();
        serde_json::json!({
            "title": self.title,
            "setting": self.setting,
            "verdict": self.verdict(),
            "rows": rows,
            "teacher_tokens_per_second": self.teacher_tokens_per_second,
            "bytes_per_token": self.bytes_per_token,
            "peak_rss_bytes": self.peak_rss_bytes,
            "seconds": self.seconds,
        })
    }

    /// Writes `summary.json`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.to_json())
            .map_err(|e| Error::Job(format!("the summary as JSON: {e}")))?;
        Ok(output::write(path, (text + "\n").as_bytes())?)
    }
}

/// A mean with its deviation, or a dash.
pub(crate) fn cell(spread: Option<Spread>, scale: f64, digits: usize) -> String {
    match spread {
        None => "-".into(),
        Some(Spread { mean, .. }) if mean.is_nan() => "-".into(),
        Some(Spread { mean, deviation }) => {
            let mean = format!("{:.digits$}", scale * mean);
            match deviation {
                None => mean,
                Some(deviation) => format!("{mean} ± {:.digits$}", scale * deviation),
            }
        }
    }
}

/// The cells of a row, as the table and the report show them.
pub(crate) fn cells(row: &Row) -> [String; 8] {
    let optional = |value: Option<f64>| value.filter(|v| v.is_finite());
    [
        row.name.clone(),
        cell(row.accuracy_numbers, 100.0, 1),
        cell(row.accuracy_templates, 100.0, 1),
        cell(Some(row.ce), 1.0, 4),
        cell(Some(row.kl), 1.0, 4),
        optional(Some(row.seconds)).map_or("-".into(), |s| format!("{s:.1}")),
        optional(row.tokens_per_second).map_or("-".into(), |t| format!("{t:.0}")),
        row.peak_rss_bytes
            .map_or("-".into(), |bytes| format!("{:.0}", bytes as f64 / 1e6)),
    ]
}

/// Heads of the columns of [`cells`].
pub(crate) const HEADS: [&str; 8] = [
    "",
    "numbers %",
    "templates %",
    "CE",
    "KL",
    "seconds",
    "tokens/s",
    "MB",
];

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![HEADS.map(str::to_owned)];
        lines.extend(self.rows.iter().map(cells));
        let width = |column: usize| {
            let widths = lines.iter().map(|line| line[column].chars().count());
            widths.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
        for line in &lines {
            let [name, rest @ ..] = line;
            write!(f, "{name:<0$}", widths[0])?;
            for (cell, width) in rest.iter().zip(&widths[1..]) {
                write!(f, "  {cell:>width$}")?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "teacher: {:.0} tokens/s, {:.0} bytes/token, {:.0} MB; trainer: {:.0} MB; {:.0} s in all",
            self.teacher_tokens_per_second,
            self.bytes_per_token,
            self.peak_rss_bytes.teacher as f64 / 1e6,
            self.peak_rss_bytes.trainer as f64 / 1e6,
            self.seconds
        )?;
        write!(f, "{}", self.verdict())
    }
}
