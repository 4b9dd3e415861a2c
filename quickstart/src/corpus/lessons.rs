/*! Provides the texts of the quickstart: what its models have read, and what the student is to learn of the teacher.

```text
                    English        Chinese, four settings     Chinese, the four others
 teacher has read   problems       problems                   problems
 student has read   problems       problems                   questions, a few
 it is to learn                                               few.jsonl, pairs.jsonl
```

Solutions are operations alone, `a=45×5;b=a+19`: a small model learns which they are, not how to work them out.
*/

use std::path::{Path, PathBuf};

use distill_program::files;
use serde::Serialize;

use super::{
    Language, Pair, Problem, Split,
    file::write_lines,
    generate,
    pair::{Link, Side},
    pairs,
    random::Random,
};
use crate::{Error, Result};

/// Operations of a problem here.
const STEPS: usize = 2;
/// About two problems of five have so many.
const DRAWS_PER_PROBLEM: usize = 3;
/// Settings that the student knows in Chinese, as ids of templates begin.
const KNOWN: [&str; 4] = ["stock", "things", "ages", "prices"];
/// Of what both models have read, and of what is learned.
const READ_SEED: u64 = 3;
const LEARN_SEED: u64 = 5;
/// Problems of each language that the teacher has read.
const TEACHER_READS: usize = 20_000;
/// English and Chinese problems, and Chinese questions of the other settings, that the student has read.
const STUDENT_READS: [usize; 3] = [12_000, 6_000, 1_000];
/// Held-out problems of each language.
const HELD_OUT: usize = 300;
/// English texts among the pairs: what both sides read alike.
const SAME_TEXTS: usize = 150;

/// A line of these files.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Lesson {
    Text { text: String },
    Problem { prompt: String, completion: String },
    Pair(Box<Pair>),
}

impl Lesson {
    fn text(problem: &Problem) -> Self {
        Self::Text {
            text: format!("{}{}", problem.prompt, problem.equations),
        }
    }

    fn problem(prompt: &str, equations: &str) -> Self {
        Self::Problem {
            prompt: prompt.to_owned(),
            completion: equations.to_owned(),
        }
    }
}

/// Writes what the embedded models are trained on, `teacher-reads.jsonl` and `student-reads.jsonl`, and what shows that they have
/// learned it, or not yet: `held-out-english.jsonl` and, of the settings that are new to the student, `held-out-chinese.jsonl`.
///
/// # Errors
/// Those of [`generate`], and [`Error::Io`](crate::Error::Io) with the path.
pub fn write_readings(dir: &Path) -> Result<[PathBuf; 4]> {
    let (english, chinese): (Vec<_>, Vec<_>) = simple(Split::Train, READ_SEED, 2 * TEACHER_READS)?
        .into_iter()
        .partition(|problem| problem.language == Language::English);
    let (known, others): (Vec<_>, Vec<_>) = chinese
        .iter()
        .cloned()
        .partition(|problem| is_known(&problem.template));
    let [ours, theirs, questions] = STUDENT_READS;
    // The two have read different problems, or nearly so.
    let later = english.iter().skip(TEACHER_READS / 5).take(TEACHER_READS);
    let all = chinese.iter().skip(TEACHER_READS / 5).take(TEACHER_READS);
    let teacher = both_ways(later.chain(all));
    let mut student = both_ways(english.iter().take(ours).chain(known.iter().take(theirs)));
    student.extend(others.iter().take(questions).map(|problem| Lesson::Text {
        text: problem.prompt.clone(),
    }));
    Ok([
        write(dir, "teacher-reads", in_random_order(teacher))?,
        write(dir, "student-reads", in_random_order(student))?,
        write(dir, "held-out-english", held_out(Language::English)?)?,
        write(dir, "held-out-chinese", held_out(Language::Chinese)?)?,
    ])
}

/// Writes a few Chinese problems of the settings that are new to the student, as running text, and others to be held out:
/// `few.jsonl` and `few-held-out.jsonl`.
///
/// # Errors
/// As [`write_readings`].
pub fn write_few(dir: &Path, [few, held_out]: [usize; 2]) -> Result<[PathBuf; 2]> {
    let texts = |split, count| -> Result<Vec<Lesson>> {
        let mut problems = problems(split, Language::Chinese, LEARN_SEED, 4 * count)?;
        problems.retain(|problem| !is_known(&problem.template));
        Ok(problems.iter().take(count).map(Lesson::text).collect())
    };
    Ok([
        write(dir, "few", texts(Split::Train, few)?)?,
        write(dir, "few-held-out", texts(Split::HeldoutNumbers, held_out)?)?,
    ])
}

/// Writes pairs of an English and a Chinese problem of the settings that are new to the student, `labelled` with the student's
/// solution and `unlabelled` without, among English texts that both read, and problems to be held out: `pairs.jsonl` and
/// `pairs-held-out.jsonl`.
///
/// # Errors
/// As [`write_readings`].
pub fn write_pairs(
    dir: &Path,
    [labelled, unlabelled, held_out]: [usize; 3],
) -> Result<[PathBuf; 2]> {
    let same = problems(Split::Train, Language::English, LEARN_SEED, 2 * SAME_TEXTS)?;
    let same = same.iter().take(SAME_TEXTS).map(Lesson::text);
    let with = new_pairs(Split::Train, labelled, LEARN_SEED, true)?;
    let without = new_pairs(Split::Train, unlabelled, READ_SEED, false)?;
    let of_two = with.into_iter().chain(without);
    let lessons = same.chain(of_two.map(|pair| Lesson::Pair(Box::new(pair))));
    let held_out = new_pairs(Split::HeldoutNumbers, held_out, LEARN_SEED, true)?;
    let held_out = held_out
        .iter()
        .map(|pair| Lesson::problem(&pair.student.prompt, &pair.equations));
    Ok([
        write(dir, "pairs", in_random_order(lessons.collect()))?,
        write(dir, "pairs-held-out", held_out.collect())?,
    ])
}

/// Problems of unseen numbers, with their solutions; the Chinese ones are of the settings that are new to the student.
fn held_out(language: Language) -> Result<Vec<Lesson>> {
    let mut problems = problems(Split::HeldoutNumbers, language, READ_SEED, 4 * HELD_OUT)?;
    problems.retain(|problem| language == Language::English || !is_known(&problem.template));
    let problems = problems.iter().take(HELD_OUT);
    Ok(problems
        .map(|problem| Lesson::problem(&problem.prompt, &problem.equations))
        .collect())
}

fn is_known(template: &str) -> bool {
    KNOWN.iter().any(|setting| template.starts_with(setting))
}

/// At most `count` problems of a language.
fn problems(split: Split, language: Language, seed: u64, count: usize) -> Result<Vec<Problem>> {
    let mut problems = simple(split, seed, count)?;
    problems.retain(|problem| problem.language == language);
    problems.truncate(count);
    Ok(problems)
}

/// Problems of so many operations, in both languages, of three draws for each of `count`.
fn simple(split: Split, seed: u64, count: usize) -> Result<Vec<Problem>> {
    let mut problems = generate(split, DRAWS_PER_PROBLEM * count, seed)?;
    problems.retain(|problem| problem.steps() == STEPS);
    Ok(problems)
}

/// `count` pairs of the settings that are new to the student, solved by their operations.
fn new_pairs(split: Split, count: usize, seed: u64, labels: bool) -> Result<Vec<Pair>> {
    // Half of the settings are new.
    let drawn = pairs(split, 3 * DRAWS_PER_PROBLEM * count, seed, labels)?;
    let fits = |pair: &Pair| !is_known(&pair.template) && pair.steps() == STEPS;
    let found = drawn.into_iter().filter(fits).take(count).map(|pair| {
        let whole = 0..pair.equations.len();
        let shared = labels.then(|| Link::of("completion", &whole, &whole));
        let side = |side: &Side, is_solved: bool| Side {
            prompt: side.prompt.clone(),
            completion: if is_solved {
                pair.equations.clone()
            } else {
                String::new()
            },
        };
        Pair {
            teacher: side(&pair.teacher, true),
            student: side(&pair.student, labels),
            shared: shared.into_iter().collect(),
            ..pair
        }
    });
    let found: Vec<Pair> = found.collect();
    if found.len() < count {
        return Err(Error::Exhausted {
            split: split.name(),
            wanted: count,
            found: found.len(),
        });
    }
    Ok(found)
}

/// Every other one as running text, so that questions are learned too.
fn both_ways<'a>(problems: impl Iterator<Item = &'a Problem>) -> Vec<Lesson> {
    let lesson = |(at, problem): (usize, &Problem)| {
        if at % 2 == 1 {
            Lesson::text(problem)
        } else {
            Lesson::problem(&problem.prompt, &problem.equations)
        }
    };
    problems.enumerate().map(lesson).collect()
}

fn in_random_order(lessons: Vec<Lesson>) -> Vec<Lesson> {
    let places: Vec<usize> = (0..lessons.len()).collect();
    let order = Random::new(LEARN_SEED).pick_distinct(&places, places.len());
    order.into_iter().map(|at| lessons[at].clone()).collect()
}

fn write(dir: &Path, name: &str, lessons: Vec<Lesson>) -> Result<PathBuf> {
    files::create_directory(dir)?;
    let path = dir.join(name).with_extension("jsonl");
    write_lines(&path, &lessons)?;
    Ok(path)
}
