//! Provides the parts of a run: one training, one evaluation, and what of them is shown.

use std::{fs, path::Path, time::Instant};

use distill_program::{FileError, files};
use serde_json::Value;

use super::{
    Job, Sample, TransportPlan, Variant, job, path_text,
    process::{run_json, run_program},
    run_name, say,
};
use crate::{Error, Result};

/// What one evaluation found.
#[derive(Clone, Debug, Default)]
pub(super) struct Evaluation {
    /// Share of exact answers by split.
    pub accuracy: Vec<(String, f64)>,
    /// Mean over the splits.
    pub ce: f64,
    /// Mean over the splits.
    pub kl: f64,
}

/// What one training left.
#[derive(Clone, Debug, Default)]
pub(super) struct Trained {
    pub seconds: f64,
    pub tokens_per_second: f64,
    pub peak_rss_bytes: u64,
    pub ce: Vec<f64>,
    pub kl: Vec<f64>,
}

/// A job with its running teacher.
pub(super) struct Runner<'a> {
    pub job: &'a Job,
    pub address: &'a str,
    /// Whether a run has failed in this directory before; what it trained is made anew.
    pub is_retry: bool,
}

impl Runner<'_> {
    pub fn train(&self, variant: &Variant, seed: u64) -> Result<Trained> {
        let name = run_name(variant, seed);
        let out = self.job.out.join("runs").join(&name);
        let training = &self.job.training;
        if self.is_retry && out.exists() {
            say(&format!(
                "removing what an earlier attempt left in {}",
                out.display()
            ));
            fs::remove_dir_all(&out).map_err(FileError::at("remove", &out))?;
        }
        say(&format!("training {name}: {} steps", training.steps));
        let started = Instant::now();
        let mut args: Vec<String> = vec!["train".into()];
        let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        flag("teacher", self.address.to_owned());
        flag("student", path_text(&self.job.student));
        flag("out", path_text(&out));
        flag("steps", training.steps.to_string());
        flag("batch-size", training.batch_size.to_string());
        flag("lr", training.lr.to_string());
        // Short sequences: keeping activations costs little and saves a forward pass.
        if training.seq_len <= 256 {
            flag("checkpointing", "off".to_owned());
        }
        flag("seed", seed.to_string());
        args.extend(variant.args.iter().map(|arg| (*arg).to_owned()));
        run_program(&self.job.programs.student_trainer, &args)?;
        let seconds = started.elapsed().as_secs_f64();
        read_metrics(&out.join("metrics.jsonl"), seconds)
    }

    pub fn evaluate(&self, name: &str, model: &Path, adapter: Option<&Path>) -> Result<Evaluation> {
        let mut evaluation = Evaluation::default();
        let dense = model == self.job.teacher;
        for (split, file) in &self.job.evaluation {
            say(&format!("evaluating {name} on {split}"));
            let mut args: Vec<String> = vec!["eval".into(), "--json".into()];
            let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
            flag("student", path_text(model));
            flag("data", path_text(file));
            flag("teacher", self.address.to_owned());
            flag("seq-len", self.job.training.seq_len.to_string());
            flag("max-sequences", self.job.evaluation_sequences.to_string());
            flag("quantize", if dense { "none" } else { "nf4" }.to_owned());
            if let Some(adapter) = adapter {
                flag("adapter", path_text(adapter));
            }
            let base = self.job.out.join("answers");
            files::create_directory(&base)?;
            flag(
                "plans-out",
                path_text(&base.join(format!("{name}-{split}.plans.json"))),
            );
            if self.job.exact_match {
                flag(
                    "answers-out",
                    path_text(&base.join(format!("{name}-{split}.jsonl"))),
                );
            }
            let report = run_json(&self.job.programs.student_trainer, &args)?;
            let number = |key: &str| report.get(key).and_then(Value::as_f64);
            if let Some(accuracy) = number("exact_match") {
                evaluation.accuracy.push((split.clone(), accuracy));
            }
            let share = 1.0 / self.job.evaluation.len() as f64;
            evaluation.ce += share * number("ce").unwrap_or(f64::NAN);
            evaluation.kl += share * number("kl").unwrap_or(f64::NAN);
        }
        Ok(evaluation)
    }

    /// The first problems of the last split, with the answers before, after and of the teacher.
    pub fn samples(&self) -> Result<Vec<Sample>> {
        let Some((split, _)) = self.job.evaluation.last().filter(|_| self.job.exact_match) else {
            return Ok(Vec::new());
        };
        let answers = |name: &str| -> Result<Vec<Value>> {
            let path = self
                .job
                .out
                .join("answers")
                .join(format!("{name}-{split}.jsonl"));
            let text = fs::read_to_string(&path).map_err(FileError::at("read", &path))?;
            Ok(text
                .lines()
                .filter_map(|l| serde_json::from_str(l).ok())
                .collect())
        };
        let mut shown = self.shown();
        if self.job.evaluate_teacher {
            shown.push(("teacher".into(), "teacher".into()));
        }
        let answers: Vec<(String, Vec<Value>)> = shown
            .into_iter()
            .map(|(run, name)| Ok((name, answers(&run)?)))
            .collect::<Result<_>>()?;
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let count = job::SAMPLES;
        Ok((0..count)
            .filter_map(|i| {
                let first = answers.first()?.1.get(i)?;
                Some(Sample {
                    prompt: text(first, "prompt"),
                    reference: text(first, "reference"),
                    answers: answers
                        .iter()
                        .filter_map(|(name, answers)| {
                            let answer = answers.get(i)?;
                            let correct = answer["correct"].as_bool().unwrap_or(false);
                            Some((name.clone(), text(answer, "generated"), correct))
                        })
                        .collect(),
                })
            })
            .collect())
    }

    /// The runs whose answers and plans are shown, with their names for people.
    fn shown(&self) -> Vec<(String, String)> {
        let seed = self.job.training.seeds.first().copied().unwrap_or_default();
        let after = self.job.shown_variant();
        let after = after.map(|v| (run_name(v, seed), v.name.to_owned()));
        std::iter::once(("before".to_owned(), "before".to_owned()))
            .chain(after)
            .collect()
    }

    /// Plans of the first sequences before and after.
    pub fn plans(&self) -> Result<Vec<TransportPlan>> {
        let Some((split, _)) = self.job.evaluation.first() else {
            return Ok(Vec::new());
        };
        let mut plans = Vec::new();
        for (run, name) in self.shown() {
            let base = self.job.out.join("answers");
            let path = base.join(format!("{run}-{split}.plans.json"));
            let text = fs::read_to_string(&path).map_err(FileError::at("read", &path))?;
            let read: Vec<TransportPlan> = serde_json::from_str(&text)
                .map_err(|e| Error::Job(format!("{}: {e}", path.display())))?;
            plans.extend(read.into_iter().map(|plan| TransportPlan {
                title: name.clone(),
                ..plan
            }));
        }
        Ok(plans)
    }
}

fn read_metrics(path: &Path, seconds: f64) -> Result<Trained> {
    let text = fs::read_to_string(path).map_err(FileError::at("read", path))?;
    let lines: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let column =
        |key: &str| -> Vec<f64> { lines.iter().filter_map(|line| line[key].as_f64()).collect() };
    let (tokens, step_seconds) = (column("tokens"), column("seconds"));
    let total: f64 = step_seconds.iter().sum();
    Ok(Trained {
        seconds,
        tokens_per_second: tokens.iter().sum::<f64>() / total.max(1e-9),
        peak_rss_bytes: column("peak_rss_bytes").last().copied().unwrap_or(0.0) as u64,
        ce: column("ce"),
        kl: column("kl"),
    })
}
