//! Provides the look into a directory before a run starts there: new, left by a start that failed, or not to be touched.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use distill_program::output::UNFINISHED;

use super::{
    MEMORY_FILE, TEACHER_FILE,
    directory::{
        ADAPTER_DIRECTORY, ANSWERS_FILE, CONFIG_FILE, LOCK_FILE, PLANS_FILE, PROJECTION_REPORT,
        SUMMARY_FILE,
    },
};
use crate::{Error, Result, config::FILE_BYTES_MAX, files};

/// What a run writes that is worth nothing without a checkpoint or a result.
const BESIDE: [&str; 12] = [
    CONFIG_FILE,
    MEMORY_FILE,
    TEACHER_FILE,
    PROJECTION_REPORT,
    PLANS_FILE,
    ANSWERS_FILE,
    "metrics.jsonl",
    "eval.jsonl",
    "tensorboard",
    "report.html",
    "report.md",
    "best",
];
/// Where checkpoints and results are.
const PRECIOUS: [&str; 3] = ["checkpoints", ADAPTER_DIRECTORY, "model"];
/// Batches that failed runs left for people; they stay.
const DUMP_PREFIX: &str = "failed-step-";
/// Of files and checkpoints that were being written.
const TEMPORARY_PREFIXES: [&str; 2] = [".tmp", UNFINISHED];
/// What the root of a disk holds.
const OF_A_DISK: &str = "lost+found";
/// Of what a shell writes beside a run that it starts; they stay.
const SHELL_LOG: &str = "log";

/// Whether a run may start in `directory`, and what of an earlier start is in its way.
///
/// # Errors
/// A checkpoint or a result is there, or something that no run writes, with what to do.
pub(super) fn leftovers(directory: &Path) -> Result<Vec<PathBuf>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let has_started = has_started(directory);
    let (mut left, mut strange) = (Vec::new(), Vec::new());
    for path in files::list(directory)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == SUMMARY_FILE || (PRECIOUS.contains(&&*name) && is_worth_something(&path)?) {
            return Err(earlier_run(directory, &name));
        }
        // Other programs write files of these names, too.
        let own = has_started && (BESIDE.contains(&&*name) || PRECIOUS.contains(&&*name));
        let stays = name == LOCK_FILE || name == OF_A_DISK || name.starts_with(DUMP_PREFIX);
        if own || is_temporary(&path) {
            left.push(path.clone());
        } else if !stays && path.extension() != Some(OsStr::new(SHELL_LOG)) {
            strange.push(name.into_owned());
        }
    }
    strange.sort();
    match strange.first() {
        None => Ok(left),
        Some(first) => Err(Error::file(
            directory,
            format!(
                "holds {} that no run wrote, such as {first}; name a new or an empty directory with --out DIR",
                match strange.len() {
                    1 => "something".to_owned(),
                    count => format!("{count} things"),
                }
            ),
        )),
    }
}

fn earlier_run(directory: &Path, found: &str) -> Error {
    // `pretrain` has no teacher, and cannot go on.
    let remedy = if settings(directory).contains_key("teacher") {
        format!("`train --resume {}` goes on with it, ", directory.display())
    } else {
        String::new()
    };
    Error::file(
        directory,
        format!(
            "holds an earlier run ({found}); {remedy}a new one needs a new directory: --out DIR"
        ),
    )
}

/// Whether a run has begun here: its configuration is the first thing that it writes.
fn has_started(directory: &Path) -> bool {
    let settings = settings(directory);
    ["lr", "out"].iter().all(|key| settings.contains_key(*key))
}

/// The settings in `directory`; empty where there are none.
fn settings(directory: &Path) -> toml::Table {
    let path = directory.join(CONFIG_FILE);
    files::read_toml(&path, FILE_BYTES_MAX).unwrap_or_default()
}

/// Whether checkpoints, an adapter or a model are in `path`, and not only what was written ahead of them.
fn is_worth_something(path: &Path) -> Result<bool> {
    if !path.is_dir() {
        return Ok(true);
    }
    for path in files::list(path)? {
        let is_checkpoint = path.is_dir() && !is_temporary(&path);
        if is_checkpoint || path.extension() == Some(OsStr::new("safetensors")) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    TEMPORARY_PREFIXES
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Removes what [`leftovers`] found.
///
/// # Errors
/// The file system refuses.
pub(super) fn remove(left: &[PathBuf]) -> Result<()> {
    for path in left {
        let removed = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        removed.map_err(Error::io("remove", path))?;
    }
    Ok(())
}
