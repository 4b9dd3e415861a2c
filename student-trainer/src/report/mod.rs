/*! Provides the report of any run, and of several side by side: curves, answers, settings, memory; as a page, and as Markdown.

```text
 RUN/config.toml, teacher.json, metrics.jsonl, eval.jsonl, answers.json, memory.json
      └──> read ──> curves, tables, answers ──> distill_report::Document ──> report.html, report.md
```
*/

mod answers;
mod command;
mod memory;
mod read;

use std::path::{Path, PathBuf};

use distill_program::units::Moment;
use distill_report::{Block, Document, Section, Series};
use serde_json::{Map, Value};

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

/// The heading of what a run took.
const MEMORY: &str = "Memory";
/// Evaluations of a run that its table names: the first, the best and the last.
const EVAL_HEADS: [&str; 8] = [
    "run",
    "step",
    "",
    "cross-entropy",
    "KL",
    "top-1 agreement",
    "top-5 agreement",
    "exact",
];

/// Writes `report.html` into a run's directory, and `report.md` beside it; the page's path.
///
/// # Errors
/// A directory that holds no run, or the file system refuses.
pub fn write(run: &Path) -> Result<PathBuf> {
    let document = document(&[Run::read(run)?]);
    let page = run.join("report.html");
    write_atomically(&page, document.html().as_bytes())?;
    write_atomically(&run.join("report.md"), document.markdown().as_bytes())?;
    Ok(page)
}

/// As [`write`], at the end of a run: that a page cannot be written does not undo what was trained.
pub(crate) fn write_or_warn(run: &Path) {
    match write(run) {
        Ok(path) => tracing::info!("report in {}", path.display()),
        Err(error) => tracing::warn!("the report could not be written: {error}"),
    }
}

/// Writes one report about some runs: Markdown where the file's name ends in `.md`, else a page.
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
    let document = document(&runs.collect::<Result<Vec<_>>>()?);
    let text = if out.extension().is_some_and(|extension| extension == "md") {
        document.markdown()
    } else {
        document.html()
    };
    write_atomically(out, text.as_bytes())
}

/// What a model card says of the run that made the model `name` from `base`: its report, without what is about the machine.
///
/// # Errors
/// A directory that holds no run.
pub(crate) fn for_card(run: &Path, name: &str, base: Option<&str>) -> Result<String> {
    let mut document = document(&[Run::read_public(run, name, base)?]);
    document.sections.retain(|section| section.title != MEMORY);
    document.subtitle = format!(
        "The report of the run that made it, by student-trainer {}; files that it names are the run's.",
        env!("CARGO_PKG_VERSION")
    );
    Ok(document.markdown())
}

fn document(runs: &[Run]) -> Document {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let evaluations = [
        evaluations(runs),
        curves(runs, &EVAL_CURVES, Run::eval_curve),
    ];
    Document {
        title: names.join(", "),
        subtitle: "student-trainer's report".to_owned(),
        sections: vec![
            Section::new("", runs.iter().flat_map(origin).collect()),
            Section::new("Results", results(runs)),
            Section::new("Answers before and after", answers::answers(runs)),
            Section::new("Evaluations", evaluations.into_iter().flatten().collect()),
            Section::new(
                "By step",
                curves(runs, &CURVES, Run::curve).into_iter().collect(),
            ),
            Section::new("Teacher", teachers(runs)),
            Section::new("Settings", settings(runs)),
            Section::new(MEMORY, memory::memory(runs)),
        ],
    }
}

/// Who taught whom, when, and by which command.
fn origin(run: &Run) -> [Block; 2] {
    let teacher = run.teacher.as_ref().map(|teacher| teacher.name.as_str());
    let student = Run::setting(&run.settings, "student");
    let of_both = match (teacher, student) {
        (Some(teacher), student) => format!(": `{teacher}` teaches `{student}`"),
        (None, "") => String::new(),
        (None, student) => format!(": student `{student}`"),
    };
    let began = run.began.map(|began| format!(", begun {}", Moment(began)));
    let began = began.unwrap_or_default();
    [
        Block::Note(format!("`{}`{of_both}{began}.", run.name)),
        Block::Code(run.command.clone()),
    ]
}

/// Charts of what some run has numbers of.
fn curves(
    runs: &[Run],
    curves: &[(&str, &str)],
    of: fn(&Run, &str) -> Vec<(f64, f64)>,
) -> Option<Block> {
    let draw = |(key, caption): &(&str, &str)| {
        let series = runs.iter().map(|run| (run, of(run, key))).enumerate();
        // A part of the loss without weight is zero throughout.
        let series = series.filter(|(_, (_, points))| points.iter().any(|point| point.1 != 0.0));
        let series = series.map(|(place, (run, points))| {
            Series::new(place, &run.name, points).averaged(POINTS_MAX)
        });
        let series: Vec<Series> = series.collect();
        (!series.is_empty()).then(|| ((*caption).to_owned(), series))
    };
    let charts: Vec<_> = curves.iter().filter_map(draw).collect();
    (!charts.is_empty()).then_some(Block::Charts(charts))
}

fn results(runs: &[Run]) -> Vec<Block> {
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
            last(curve("epoch")).map_or_else(|| "–".to_owned(), hundredths),
            digits(at_the_end(&curve("loss"))),
            digits(at_the_end(&curve("ce"))),
            digits(at_the_end(&curve("kl")).filter(|kl| *kl != 0.0)),
            of_eval("ce"),
            of_eval("kl"),
            digits(mean(&curve("tokens_per_second"))),
            format!("{:.1}", seconds / 60.0),
        ]
    };
    vec![
        Block::table(&heads, runs.iter().map(row).collect()),
        Block::Note(
            "Losses are means over the last tenth of the steps, held-out numbers the last evaluation's; minutes are those of the \
             steps and of waiting for the teacher."
                .to_owned(),
        ),
    ]
}

/// The first evaluation of every run, its best and its last.
fn evaluations(runs: &[Run]) -> Option<Block> {
    let mut rows = Vec::new();
    for run in runs {
        let is_best = |line: &Map<String, Value>| line.get("best") == Some(&Value::Bool(true));
        let last = run.evals.len().saturating_sub(1);
        let best = run.evals.iter().rposition(is_best);
        for (place, line) in run.evals.iter().enumerate() {
            let names = [
                (place == 0).then_some("first"),
                (Some(place) == best).then_some("best"),
                (place == last).then_some("last"),
            ];
            let names: Vec<&str> = names.into_iter().flatten().collect();
            if names.is_empty() {
                continue;
            }
            let number = |key: &str| line.get(key).and_then(Value::as_f64);
            let numbers = EVAL_CURVES.iter().map(|(key, _)| digits(number(key)));
            let step = number("step").unwrap_or_default().to_string();
            let cells = [run.name.clone(), step, names.join(", ")];
            rows.push(cells.into_iter().chain(numbers).collect());
        }
    }
    (!rows.is_empty()).then(|| Block::table(&EVAL_HEADS, rows))
}

/// Who taught each run, and what was kept of it; nothing where nobody did.
fn teachers(runs: &[Run]) -> Vec<Block> {
    let heads = [
        "run",
        "teacher",
        "capture",
        "sequences",
        "tokens",
        "targets",
        "fingerprint",
        "of the capture",
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
        return Vec::new();
    }
    let note = "Beginnings of the fingerprints; `teacher.json` holds everything.";
    vec![Block::table(&heads, rows), Block::Note(note.to_owned())]
}

/// The beginning of a fingerprint, which tells two apart.
fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(FINGERPRINT_SHOWN).collect()
}

/// Settings that are not the defaults in some run.
fn settings(runs: &[Run]) -> Vec<Block> {
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
        return Vec::new();
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
    let note = "What differs from the defaults; `config.toml` holds everything.";
    vec![
        Block::table(&heads, keys.iter().map(row).collect()),
        Block::Note(note.to_owned()),
    ]
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

/// Two digits behind the point, less the zeros at their end.
fn hundredths(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
