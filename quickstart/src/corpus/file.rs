//! Provides the corpus as files: one JSON object a line, one file a split.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use distill_program::{FileError, files, output};

use serde::Serialize;

use super::{Problem, Split, generate};
use crate::{Error, Result};

/// Problems of each split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Training problems.
    pub train: usize,
    /// Problems of each held-out split.
    pub held_out: usize,
    /// Of the training problems, only those with so many steps at most are written.
    pub steps_max: usize,
}

/// Writes `train.jsonl`, `heldout-numbers.jsonl` and `heldout-templates.jsonl` into a directory; returns their paths.
///
/// # Errors
///
/// Those of [`generate`], and [`Error::Io`] with the path.
pub fn write_corpus(dir: &Path, sizes: Sizes, seed: u64) -> Result<[PathBuf; 3]> {
    files::create_directory(dir)?;
    let write = |split: Split| -> Result<PathBuf> {
        let (count, steps_max) = match split {
            Split::Train => (sizes.train, sizes.steps_max),
            Split::HeldoutNumbers | Split::HeldoutTemplates => (sizes.held_out, usize::MAX),
        };
        let path = dir.join(split.name()).with_extension("jsonl");
        let mut problems = generate(split, count, seed)?;
        problems.retain(|problem| problem.steps() <= steps_max);
        write_lines(&path, &problems)?;
        Ok(path)
    };
    let [train, numbers, templates] = Split::ALL;
    Ok([write(train)?, write(numbers)?, write(templates)?])
}

pub(super) fn write_lines(path: &Path, problems: &[impl Serialize]) -> Result<()> {
    let mut lines = Vec::new();
    for problem in problems {
        serde_json::to_writer(&mut lines, problem)
            .map_err(|e| FileError::at("write", path)(e.into()))?;
        lines.push(b'\n');
    }
    Ok(output::write(path, &lines)?)
}

/// Reads what [`write_corpus`] wrote.
///
/// # Errors
///
/// [`Error::Io`], or [`Error::Corpus`] with the line that is no problem.
pub fn read_problems(path: &Path) -> Result<Vec<Problem>> {
    let lines = BufReader::new(files::open(path)?).lines();
    let parse = |(index, line): (usize, std::io::Result<String>)| {
        serde_json::from_str(&line.map_err(FileError::at("read", path))?).map_err(|e| {
            Error::Corpus {
                path: path.to_owned(),
                line: index + 1,
                reason: e.to_string(),
            }
        })
    };
    lines.enumerate().map(parse).collect()
}
