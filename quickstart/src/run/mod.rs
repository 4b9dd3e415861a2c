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
mod runner;
mod summary;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

pub use job::{Job, NUMBERS, Programs, TEMPLATES, Training, Variant, variants};
pub use process::end_programs;
pub use summary::{Curve, PeakMemory, Row, Sample, Spread, Summary, TransportPlan};
pub(crate) use summary::{HEADS, cells};

use distill_program::{FileError, console, files};

use crate::{Error, Result};
use process::TeacherServer;
use runner::{Evaluation, Runner, Trained};

/// What a run makes in its directory before it is finished.
const PARTS: [&str; 6] = [
    "corpus",
    "runs",
    "answers",
    process::PORT_FILE,
    process::EVENTS_FILE,
    process::LOG_FILE,
];

/// Whether a run may be in `out`: a new or an empty directory, or one in which a run has failed.
///
/// # Errors
/// It holds a finished run, or somebody's other files.
pub fn check_out(out: &Path) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::Job(format!(
            "{} holds {what}; name a new directory with --out, or remove it",
            out.display()
        )))
    };
    if out.join("summary.json").exists() {
        return refuse("an earlier run".to_owned());
    }
    if !out.exists() {
        return Ok(());
    }
    for path in files::list(out)? {
        let name = path.file_name().unwrap_or_default();
        if !PARTS.iter().any(|part| name == *part) {
            return refuse(format!("{}, which no run wrote", name.display()));
        }
    }
    Ok(())
}

/// Runs the job in its directory, as [`check_out`] allows it.
///
/// # Errors
/// A program that fails, with its command; a file that cannot be read or written.
pub fn run(job: &Job) -> Result<Summary> {
    let started = Instant::now();
    check_out(&job.out)?;
    let is_retry = job.out.join(process::EVENTS_FILE).exists();
    files::create_directory(&job.out)?;
    say("starting the teacher");
    let teacher = TeacherServer::start(job)?;
    let runner = Runner {
        job,
        address: &teacher.address,
        is_retry,
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

fn run_name(variant: &Variant, seed: u64) -> String {
    format!("{}-{seed}", variant.id)
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn say(line: &str) {
    console::say(format_args!("quickstart: {line}"));
}

/// Where the two programs are, beside this one.
///
/// # Errors
/// One of them is missing, with the command that builds it.
pub fn programs(directory: Option<PathBuf>) -> Result<Programs> {
    let directory = match directory {
        Some(directory) => directory,
        None => {
            let own = std::env::current_exe();
            let own = own.map_err(FileError::at("find", Path::new("this program")))?;
            own.parent().map(Path::to_owned).unwrap_or_default()
        }
    };
    let find = |name: &str| {
        let path = directory.join(name);
        if path.is_file() {
            return Ok(path);
        }
        Err(Error::Job(format!(
            "there is no {name} in {}; build it with `cargo build --release -p {name}`",
            directory.display()
        )))
    };
    Ok(Programs {
        teacher_server: find("teacher-server")?,
        student_trainer: find("student-trainer")?,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_failed_run_does_not_burn_its_directory_and_other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        check_out(&out).unwrap();
        for part in PARTS {
            fs::create_dir_all(out.join(part)).unwrap();
        }
        check_out(&out).unwrap();
        for (name, word) in [
            ("thesis.tex", "thesis.tex"),
            ("summary.json", "earlier run"),
        ] {
            fs::write(out.join(name), "").unwrap();
            let message = check_out(&out).unwrap_err().to_string();
            assert!(
                message.contains(word) && message.contains("--out"),
                "{message}"
            );
        }
    }
}
