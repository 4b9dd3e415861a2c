/*! Provides the main job from end to end: a teacher, students trained side by side on its blocks, and what became of them.

```text
 corpus ──> teacher-server ──gRPC──┬──> train CE          ──> eval ──┐
                                   ├──> train CE + KL     ──> eval ──┼──> Summary ──> table, summary.json, report.html
                                   └──> train CE + KL + OT ──> eval ──┘
```

Both programs run as processes of their own, as they do for users; nothing here reaches into them.
*/

mod job;
mod process;
mod summary;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::Value;

pub use job::{Job, NUMBERS, Programs, TEMPLATES, Training, Variant, variants};
pub use summary::{Curve, PeakMemory, Row, Sample, Spread, Summary, TransportPlan};
pub(crate) use summary::{HEADS, cells};

use crate::{Error, Result, error::io_at};
use process::{TeacherServer, run_json, run_program};

/// What one evaluation found.
#[derive(Clone, Debug, Default)]
struct Evaluation {
    accuracy: Vec<(String, f64)>,
    ce: f64,
    kl: f64,
}

/// Runs the job in its directory, which must not hold an earlier one.
///
/// # Errors
/// A program that fails, with its command; a file that cannot be read or written.
pub fn run(job: &Job) -> Result<Summary> {
    let started = Instant::now();
    if job.out.join("summary.json").exists() {
        return Err(Error::Job(format!(
            "{} holds an earlier run; name a new directory with --out, or remove it",
            job.out.display()
        )));
    }
    fs::create_dir_all(&job.out).map_err(io_at(&job.out))?;
    say("starting the teacher");
    let teacher = TeacherServer::start(job)?;
    let runner = Runner {
        job,
        address: &teacher.address,
    };
    let mut summary = Summary::new(job);

    let before = runner.evaluate("before", &job.student, None)?;
    summary.rows.push(row("before", &[before], &[]));
    for variant in &job.variants {
        let mut evaluations = Vec::new();
        let mut trainings = Vec::new();
        for &seed in &job.training.seeds {
            let training = runner.train(variant, seed)?;
            let name = run_name(variant, seed);
            let adapter = job.out.join("runs").join(&name).join("adapter");
            evaluations.push(runner.evaluate(&name, &job.student, Some(&adapter))?);
            trainings.push(training);
        }
        summary.curves.push(Curve {
            name: variant.name.to_owned(),
            ce: trainings.first().map(|t| t.ce.clone()).unwrap_or_default(),
            kl: trainings.first().map(|t| t.kl.clone()).unwrap_or_default(),
        });
        summary
            .rows
            .push(row(variant.name, &evaluations, &trainings));
    }
    if job.evaluate_teacher {
        let itself = runner.evaluate("teacher", &job.teacher, None)?;
        summary.rows.push(row("teacher", &[itself], &[]));
    }
    summary.samples = runner.samples()?;
    summary.plans = runner.plans()?;
    let done = teacher.stop()?;
    summary.peak_rss_bytes.teacher = done.peak_rss_bytes;
    summary.peak_rss_bytes.trainer = summary
        .rows
        .iter()
        .filter_map(|row| row.peak_rss_bytes)
        .max()
        .unwrap_or(0);
    summary.teacher_tokens_per_second = done.tokens_per_second;
    summary.bytes_per_token = done.bytes_per_token;
    summary.seconds = started.elapsed().as_secs_f64();
    Ok(summary)
}

/// What one training left.
#[derive(Clone, Debug, Default)]
struct Trained {
    seconds: f64,
    tokens_per_second: f64,
    peak_rss_bytes: u64,
    ce: Vec<f64>,
    kl: Vec<f64>,
}

struct Runner<'a> {
    job: &'a Job,
    address: &'a str,
}

impl Runner<'_> {
    fn train(&self, variant: &Variant, seed: u64) -> Result<Trained> {
        let name = run_name(variant, seed);
        let out = self.job.out.join("runs").join(&name);
        let training = &self.job.training;
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

    fn evaluate(&self, name: &str, model: &Path, adapter: Option<&Path>) -> Result<Evaluation> {
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
            fs::create_dir_all(&base).map_err(io_at(&base))?;
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
    fn samples(&self) -> Result<Vec<Sample>> {
        let Some((split, _)) = self.job.evaluation.last().filter(|_| self.job.exact_match) else {
            return Ok(Vec::new());
        };
        let answers = |name: &str| -> Result<Vec<Value>> {
            let path = self
                .job
                .out
                .join("answers")
                .join(format!("{name}-{split}.jsonl"));
            let text = fs::read_to_string(&path).map_err(io_at(&path))?;
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
    fn plans(&self) -> Result<Vec<TransportPlan>> {
        let Some((split, _)) = self.job.evaluation.first() else {
            return Ok(Vec::new());
        };
        let mut plans = Vec::new();
        for (run, name) in self.shown() {
            let base = self.job.out.join("answers");
            let path = base.join(format!("{run}-{split}.plans.json"));
            let text = fs::read_to_string(&path).map_err(io_at(&path))?;
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

fn row(name: &str, evaluations: &[Evaluation], trainings: &[Trained]) -> Row {
    let spread = |values: Vec<f64>| Spread::of(&values);
    let accuracy = |split: &str| {
        let of = |e: &Evaluation| e.accuracy.iter().find(|(s, _)| s == split).map(|(_, a)| *a);
        let values: Vec<f64> = evaluations.iter().filter_map(of).collect();
        (!values.is_empty()).then(|| spread(values))
    };
    Row {
        name: name.to_owned(),
        accuracy_numbers: accuracy(job::NUMBERS),
        accuracy_templates: accuracy(job::TEMPLATES),
        ce: spread(evaluations.iter().map(|e| e.ce).collect()),
        kl: spread(evaluations.iter().map(|e| e.kl).collect()),
        seconds: spread(trainings.iter().map(|t| t.seconds).collect()).mean,
        tokens_per_second: trainings.first().map(|t| t.tokens_per_second),
        peak_rss_bytes: trainings.iter().map(|t| t.peak_rss_bytes).max(),
    }
}

fn read_metrics(path: &Path, seconds: f64) -> Result<Trained> {
    let text = fs::read_to_string(path).map_err(io_at(path))?;
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

fn run_name(variant: &Variant, seed: u64) -> String {
    format!("{}-{seed}", variant.id)
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn say(line: &str) {
    eprintln!("quickstart: {line}");
}

/// Where the two programs are, beside this one.
///
/// # Errors
/// One of them is missing, with the command that builds it.
pub fn programs(directory: Option<PathBuf>) -> Result<Programs> {
    let directory = match directory {
        Some(directory) => directory,
        None => {
            let own = std::env::current_exe().map_err(io_at(Path::new("this program")))?;
            own.parent().map(Path::to_owned).unwrap_or_default()
        }
    };
    let find = |name: &str| {
        let path = directory.join(name);
        match path.is_file() {
            true => Ok(path),
            false => Err(Error::Job(format!(
                "there is no {name} in {}; build it with `cargo build --release -p {name}`",
                directory.display()
            ))),
        }
    };
    Ok(Programs {
        teacher_server: find("teacher-server")?,
        student_trainer: find("student-trainer")?,
    })
}
