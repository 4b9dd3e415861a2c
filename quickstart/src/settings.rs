//! Provides the jobs that `quickstart run` knows: on the embedded models, shorter, longer, and on models that someone names.

use std::path::{Path, PathBuf};

use distill_program::files;

use crate::{
    Error, Result,
    corpus::{Sizes, write_corpus},
    run::{Job, NUMBERS, Programs, TEMPLATES, Training, check_out, variants},
};

/// Seed of the problems that students distil on. The embedded models were trained on those of seed 1, whose held-out
/// problems are what everything is evaluated on.
const DISTIL_SEED: u64 = 2;
const HELD_OUT_SEED: u64 = 1;
/// Longer than any problem.
const PROBLEM_TOKENS_MAX: usize = 160;
/// Of both the generated problems and a named text, for models of a size that people use.
const REAL_SEQ_LEN: usize = 256;
/// Runs that are kept beside each other before a name must be given.
const RUNS_MAX: usize = 1000;

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Two minutes: fewer losses, fewer problems.
    Fast,
    /// All losses, one seed.
    Default,
    /// All losses, three seeds.
    Full,
}

/// The job on the embedded models.
///
/// # Errors
/// The assets are not there, or the problems cannot be written.
pub fn embedded(effort: Effort, assets: &Path, programs: Programs, out: PathBuf) -> Result<Job> {
    check_out(&out)?;
    let (teacher, student) = (assets.join("teacher"), assets.join("student"));
    for directory in [&teacher, &student] {
        if !directory.join("model.safetensors").is_file() {
            return Err(Error::Job(format!(
                "there is no model in {}; name the directory of the embedded models with --assets",
                directory.display()
            )));
        }
    }
    let (steps, evaluation_sequences) = match effort {
        Effort::Fast => (80, 60),
        Effort::Default | Effort::Full => (150, 120),
    };
    let batch_size = 16;
    let corpus = problems(&out, steps * batch_size, evaluation_sequences)?;
    let mut variants = variants();
    if effort == Effort::Fast {
        variants.retain(|variant| ["ce-kl", "ot-kl"].contains(&variant.id));
    }
    Ok(Job {
        title: "ot-distill quickstart: embedded models".into(),
        out,
        programs,
        teacher,
        student,
        corpus: vec![corpus.join("train.jsonl")],
        teacher_batch_size: 16,
        evaluation: held_out(&corpus),
        evaluation_sequences,
        exact_match: true,
        evaluate_teacher: true,
        training: Training {
            seq_len: PROBLEM_TOKENS_MAX,
            steps,
            batch_size,
            lr: 2e-3,
            seeds: match effort {
                Effort::Full => vec![1, 2, 3],
                _ => vec![1],
            },
        },
        variants,
    })
}

/// The job on models of a size that people use: `texts` beside the generated problems, cross-entropy and KL before and after.
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
    let steps = 40;
    // Half of the steps are problems where there is a text for the other half.
    let share = if texts.is_empty() { 1 } else { 2 };
    let corpus = problems(&out, steps / share, 12)?;
    let files = [vec![corpus.join("train.jsonl")], texts].concat();
    let chosen = ["ce-kl", "ot-kl"];
    let variants = variants().into_iter().filter(|v| chosen.contains(&v.id));
    Ok(Job {
        title: "ot-distill quickstart: real weights".into(),
        out,
        programs,
        teacher,
        student,
        corpus: files,
        teacher_batch_size: 1,
        evaluation: held_out(&corpus),
        evaluation_sequences: 12,
        exact_match: false,
        evaluate_teacher: false,
        training: Training {
            seq_len: REAL_SEQ_LEN,
            steps,
            batch_size: 1,
            lr: 2e-4,
            seeds: vec![1],
        },
        variants: variants.collect(),
    })
}

/// Writes the problems to distil on, and the held-out ones, into `out/corpus`.
fn problems(out: &Path, train: usize, held_out: usize) -> Result<PathBuf> {
    let corpus = out.join("corpus");
    let sizes = |train, held_out| Sizes {
        train,
        held_out,
        steps_max: usize::MAX,
    };
    write_corpus(&corpus, sizes(train, 1), DISTIL_SEED)?;
    for split in [NUMBERS, TEMPLATES] {
        let unused = corpus.join(split).with_extension("jsonl");
        files::remove(&unused)?;
    }
    write_corpus(&corpus.join("held-out"), sizes(1, held_out), HELD_OUT_SEED)?;
    Ok(corpus)
}

/// The held-out files that [`problems`] wrote, by split.
fn held_out(corpus: &Path) -> Vec<(String, PathBuf)> {
    let file = |split: &str| corpus.join("held-out").join(split).with_extension("jsonl");
    [NUMBERS, TEMPLATES]
        .map(|split| (split.to_owned(), file(split)))
        .into()
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
