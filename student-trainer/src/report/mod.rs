/*! Provides `report.html` of any run, and of several side by side: curves, settings, memory.

```text
 RUN/config.toml, teacher.json, metrics.jsonl, eval.jsonl ──> read ──> curves, tables ──> distill_report::page
```
*/

mod memory;
mod read;

use std::path::{Path, PathBuf};

use distill_report::{Series, figure, figures, note, page, section, table};

use crate::{Error, Result, files::write_atomically};
pub(crate) use read::Run;

/// Points of a curve: each is the mean over its share of the steps.
const POINTS_MAX: usize = 120;
/// The share of the last steps that stands for the end of a run.
const LAST_SHARE: usize = 10;
/// Digits of a fingerprint on the page.
const FINGERPRINT_SHOWN: usize = 16;
/// Runs on one page: more lines than that are not told apart.
const RUNS_MAX: usize = 10;

/// Curves by step: key of `metrics.jsonl`, caption.
const CURVES: [(&str, &str); 9] = [
    ("loss", "Loss, the weighted total"),
    ("ce", "Cross-entropy (nats a target)"),
    ("kl", "KL to the teacher (nats a target)"),
    ("reverse_kl", "Reverse KL to the teacher (nats a target)"),
    ("jsd", "JSD to the teacher (nats a target)"),
    ("ot", "Optimal transport"),
    ("grad_norm", "Norm of the gradient before clipping"),
    ("lr", "Learning rate"),
    ("tokens_per_second", "Tokens a second"),
];
/// Curves of evaluations: key of `eval.jsonl`, caption.
const EVAL_CURVES: [(&str, &str); 5] = [
    ("ce", "Cross-entropy on held-out text (nats a target)"),
    ("kl", "KL to the teacher on held-out text (nats a target)"),
    (
        "top1_agreement",
        "Share of targets with the teacher's favourite",
    ),
    (
        "top5_agreement",
        "Share of targets with the teacher's favourite among five",
    ),
    ("exact_match", "Share of exact answers"),
];

/// Writes `report.html` into a run's directory.
///
/// # Errors
/// A directory that holds no run, or the file system refuses.
pub fn write(run: &Path) -> Result<PathBuf> {
    let out = run.join("report.html");
    write_to(&[run], &out)?;
    Ok(out)
}

/// As [`write`], at the end of a run: that a page cannot be written does not undo what was trained.
pub(crate) fn write_or_warn(run: &Path) {
    match write(run) {
        Ok(path) => tracing::info!("report in {}", path.display()),
        Err(error) => tracing::warn!("the report could not be written: {error}"),
    }
}

/// Writes one page about some runs.
///
/// # Errors
/// No run or more than ten, a directory that holds none, or the file system refuses.
pub fn write_to(runs: &[&Path], out: &Path) -> Result<()> {
    if !(1..=RUNS_MAX).contains(&runs.len()) {
        return Err(Error::Config(format!(
            "report: name 1 to {RUNS_MAX} run directories, not {}",
            runs.len()
        )));
    }
    let runs = runs.iter().map(|run| Run::read(run));
    let runs = runs.collect::<Result<Vec<_>>>()?;
    write_atomically(out, html(&runs).as_bytes())
}

fn html(runs: &[Run]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let sections = [
        section("Results", &results(runs)),
        section("Evaluations", &curves(runs, &EVAL_CURVES, Run::eval_curve)),
        section("By step", &curves(runs, &CURVES, Run::curve)),
        section("Teacher", &teachers(runs)),
        section("Settings", &settings(runs)),
        section("Memory", &memory::table(runs)),
    ];
    page(&names.join(", "), "student-trainer's report", &sections)
}

fn curves(runs: &[Run], curves: &[(&str, &str)], of: fn(&Run, &str) -> Vec<(f64, f64)>) -> String {
    let draw = |(key, caption): &(&str, &str)| {
        let series = runs.iter().map(|run| (run, of(run, key)));
        // A part of the loss without weight is zero throughout.
        let series = series.filter(|(_, points)| points.iter().any(|point| point.1 != 0.0));
        let series =
            series.map(|(run, points)| Series::new(&run.name, points).averaged(POINTS_MAX));
        figure(caption, &series.collect::<Vec<_>>())
    };
    figures(&curves.iter().map(draw).collect::<Vec<_>>())
}

fn results(runs: &[Run]) -> String {
    let heads = [
        "run",
        "steps",
        "epochs",
        "loss",
        "cross-entropy",
        "KL",
        "held-out CE",
        "held-out KL",
        "tokens/s",
        "minutes",
    ];
    let row = |run: &Run| {
        let curve = |key: &str| run.curve(key);
        let last = |points: Vec<(f64, f64)>| points.last().map(|point| point.1);
        let of_eval = |key: &str| digits(last(run.eval_curve(key)));
        let seconds: f64 = ["seconds", "wait_seconds"]
            .iter()
            .flat_map(|key| curve(key))
            .map(|point| point.1)
            .sum();
        vec![
            run.name.clone(),
            curve("step")
                .last()
                .map_or(0.0, |point| point.0)
                .to_string(),
            digits(last(curve("epoch"))),
            digits(at_the_end(&curve("loss"))),
            digits(at_the_end(&curve("ce"))),
            digits(at_the_end(&curve("kl")).filter(|kl| *kl != 0.0)),
            of_eval("ce"),
            of_eval("kl"),
            digits(mean(&curve("tokens_per_second"))),
            format!("{:.1}", seconds / 60.0),
        ]
    };
    let rows: Vec<_> = runs.iter().map(row).collect();
    table(&heads, &rows)
        + &note(
            "Losses are means over the last tenth of the steps, held-out numbers the last evaluation's; minutes are those of the \
             steps and of waiting for the teacher.",
        )
}

/// Who taught each run, and what was kept of it; nothing where nobody did.
fn teachers(runs: &[Run]) -> String {
    let heads = [
        "run",
        "teacher",
        "capture",
        "sequences",
        "tokens",
        "targets",
        "fingerprint",
        "plan",
        "corpus",
    ];
    let row = |run: &Run| {
        let teacher = run.teacher.as_ref()?;
        Some(vec![
            run.name.clone(),
            teacher.name.clone(),
            teacher.capture(),
            teacher.sequences.to_string(),
            teacher.tokens.to_string(),
            teacher.targets.to_string(),
            short(&teacher.model_fingerprint),
            short(&teacher.plan_fingerprint),
            short(&teacher.corpus_fingerprint),
        ])
    };
    let rows: Vec<_> = runs.iter().filter_map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    table(&heads, &rows)
        + &note("Beginnings of the fingerprints; <code>teacher.json</code> holds everything.")
}

/// The beginning of a fingerprint, which tells two apart.
fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(FINGERPRINT_SHOWN).collect()
}

/// Settings that are not the defaults in some run.
fn settings(runs: &[Run]) -> String {
    let mut keys: Vec<&str> = Vec::new();
    for run in runs {
        let both = run.settings.iter().chain(&run.defaults);
        for (key, _) in both {
            let changed = Run::setting(&run.settings, key) != Run::setting(&run.defaults, key);
            if changed && !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
    }
    if keys.is_empty() {
        return String::new();
    }
    let heads = ["setting", "default"].map(str::to_owned).into_iter();
    let heads: Vec<String> = heads
        .chain(runs.iter().map(|run| run.name.clone()))
        .collect();
    let row = |key: &&str| {
        let default = runs
            .first()
            .map_or("", |run| Run::setting(&run.defaults, key));
        let values = runs.iter().map(|run| Run::setting(&run.settings, key));
        let cells = [*key, default].into_iter().chain(values);
        cells.map(str::to_owned).collect()
    };
    table(&heads, &keys.iter().map(row).collect::<Vec<_>>())
        + &note("What differs from the defaults; <code>config.toml</code> holds everything.")
}

/// The mean over the last tenth.
fn at_the_end(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len().div_ceil(LAST_SHARE);
    mean(points.get(points.len() - count..)?)
}

fn mean(points: &[(f64, f64)]) -> Option<f64> {
    let sum: f64 = points.iter().map(|point| point.1).sum();
    (!points.is_empty()).then(|| sum / points.len() as f64)
}

/// Four digits; a dash where there is no number.
fn digits(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value.abs() >= 1000.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests;
