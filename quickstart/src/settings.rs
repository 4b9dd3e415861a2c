//! Provides the jobs that `quickstart run` knows: on the embedded models, shorter, longer, and on models that someone names.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::{
    Error, Result,
    corpus::{Sizes, write_corpus, write_few, write_pairs},
    run::{CORPUS, Job, Programs, Task, check_out},
};

/// Seed of the problems for models that someone names.
const PROBLEMS_SEED: u64 = 2;
/// Longer than any problem and its solution.
const PROBLEM_TOKENS_MAX: usize = 160;
/// Of both the generated problems and a named text, for models of a size that people use.
const REAL_SEQ_LEN: usize = 256;
/// Runs that are kept beside each other before a name must be given.
const RUNS_MAX: usize = 1000;

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// A minute: two seeds of two losses.
    Fast,
    /// Three seeds of the first losses of each task.
    Default,
    /// Five seeds of all losses.
    Full,
}

impl Effort {
    fn seeds(self) -> Value {
        let count = match self {
            Self::Fast => 2,
            Self::Default => 3,
            Self::Full => 5,
        };
        Value::Array((1..=count).map(Value::Integer).collect())
    }
}

/// The job on the embedded models.
///
/// # Errors
/// The assets are not there, or the problems cannot be written.
pub fn embedded(effort: Effort, assets: &Path, programs: Programs, out: PathBuf) -> Result<Job> {
    check_out(&out)?;
    let corpus = out.join(CORPUS);
    let [teacher, student] = ["teacher", "student"].map(|name| assets.join(name));
    for directory in [&teacher, &student] {
        if !directory.join("model.safetensors").is_file() {
            return Err(Error::Job(format!(
                "there is no model in {}; name the directory of the embedded models with --assets",
                directory.display()
            )));
        }
    }
    let task = |name, question: &str, arms: Arms<'_>, files: [PathBuf; 2], serve: &str| {
        let [corpus, held_out] = files;
        Ok::<_, Error>(Task {
            name,
            question: question.to_owned(),
            teacher: teacher.clone(),
            student: student.clone(),
            corpus: vec![corpus],
            serve: words(&format!(
                "--seq-len {PROBLEM_TOKENS_MAX} --batch-size 16 --estimator top-k --top-k 64 {serve}"
            )),
            arms: arms.with(effort, &held_out)?,
            // A student so small keeps less than one core busy.
            jobs: 2,
        })
    };
    let few = task(
        "few",
        "Few examples: 400 texts, read eight times; cross-entropy on others, less is better.",
        Arms {
            text: include_str!("../tasks/few.toml"),
            first: 2,
        },
        write_few(&corpus, [400, 200])?,
        "",
    )?;
    let pairs = task(
        "pairs",
        "Two languages: the teacher reads English, the student learns Chinese from 50 solved problems and 300 unsolved ones; cross-entropy \
         of other solutions, less is better.",
        Arms {
            text: include_str!("../tasks/pairs.toml"),
            first: 3,
        },
        write_pairs(&corpus, [50, 300, 200])?,
        "--state hidden:0,1",
    )?;
    Ok(Job {
        out,
        programs,
        tasks: match effort {
            Effort::Fast => vec![few],
            Effort::Default | Effort::Full => vec![few, pairs],
        },
    })
}

/// The job on models of a size that people use: `texts` beside the generated problems.
///
/// # Errors
/// A directory without a model, or problems that cannot be written.
pub fn real(
    teacher: PathBuf,
    student: PathBuf,
    texts: Vec<PathBuf>,
    programs: Programs,
    out: PathBuf,
) -> Result<Job> {
    check_out(&out)?;
    for directory in [&teacher, &student] {
        if !directory.join("config.json").is_file() {
            return Err(Error::Job(format!(
                "there is no config.json in {}; name a model's directory",
                directory.display()
            )));
        }
    }
    // Half of the steps are problems where there is a text for the other half.
    let share = if texts.is_empty() { 1 } else { 2 };
    let sizes = Sizes {
        train: 40 / share,
        held_out: 24,
        steps_max: usize::MAX,
    };
    let [train, numbers, _] = write_corpus(&out.join(CORPUS), sizes, PROBLEMS_SEED)?;
    Ok(Job {
        out,
        programs,
        tasks: vec![Task {
            name: "real",
            question:
                "40 steps of one sequence; cross-entropy on held-out problems, less is better."
                    .to_owned(),
            teacher,
            student,
            corpus: [vec![train], texts].concat(),
            serve: words(&format!("--seq-len {REAL_SEQ_LEN}")),
            arms: Arms {
                text: include_str!("../tasks/real.toml"),
                first: 2,
            }
            .with(Effort::Fast, &numbers)?,
            jobs: 1,
        }],
    })
}

/// A file of arms for `student-trainer ablate`.
struct Arms<'a> {
    text: &'a str,
    /// How many of them are trained unless all are.
    first: usize,
}

impl Arms<'_> {
    /// With seeds, and what the arms are compared on.
    fn with(&self, effort: Effort, held_out: &Path) -> Result<Table> {
        let read = toml::from_str(self.text);
        let mut arms: Table = read.map_err(|e| Error::Job(format!("arms: {e}")))?;
        arms.insert("seeds".to_owned(), effort.seeds());
        if let Some(Value::Array(all)) = arms.get_mut("arm")
            && effort != Effort::Full
        {
            all.truncate(self.first);
        }
        if let Some(Value::Table(base)) = arms.get_mut("base") {
            let file = Value::from(held_out.display().to_string());
            base.insert("eval_data".to_owned(), Value::Array(vec![file]));
        }
        Ok(arms)
    }
}

fn words(flags: &str) -> Vec<String> {
    flags.split_whitespace().map(str::to_owned).collect()
}

/// A directory in `runs` that is not there yet: `NAME`, `NAME-2`, ...
///
/// # Errors
/// There are too many.
pub fn new_directory(name: &str) -> Result<PathBuf> {
    let runs = Path::new("runs");
    (1..=RUNS_MAX)
        .map(|i| match i {
            1 => runs.join(name),
            i => runs.join(format!("{name}-{i}")),
        })
        .find(|path| !path.exists())
        .ok_or_else(|| {
            Error::Job(format!(
                "runs holds {RUNS_MAX} runs of {name}; remove some, or use --out"
            ))
        })
}
