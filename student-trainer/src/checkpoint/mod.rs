/*! Checkpoints of a run: everything that a continuation needs to be bitwise the run that was never interrupted.

```text
 RUN/checkpoints/step-000200/
     adapter_model.safetensors, adapter_config.json    or model.safetensors, config.json and the tokenizer's files
     optimizer.safetensors                             AdamW's moments and step count
     hidden_projection.safetensors, projection_optimizer.safetensors      where the loss has one
     settings.toml                                     the run's settings, which a continuation must share
     state.toml                                        step, data cursor, log position, evaluations, fingerprints, the digest
                                                       of every other file, and a checksum of every value here
 RUN/best -> checkpoints/step-000400                   the best by `best_metric`, where there are evaluations
```

A checkpoint is written into a temporary directory, every file and then the directory synced, renamed, and the directory
around it synced: after a crash at any moment it is there in full or not at all, and the ones before it are untouched.
Only then are old ones removed. What is assumed of the medium: `fsync` means on the disk, `rename` is atomic.

A checkpoint that is damaged or was edited is refused by file and field, and never passed over in silence: the message names
the one before it that is whole, and whoever reads it removes the damaged one. `best` is another matter: without it the run
goes on, and says so.
*/
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

#[cfg(test)]
mod damage_tests;
mod disk;
mod handed;
mod saved;
mod state;
mod sums;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub(crate) use disk::Content;
use disk::{Disk, RealDisk};
pub(crate) use handed::{Handed, tensor_bytes};
pub(crate) use saved::Saved;
use serde::de::DeserializeOwned;
pub use state::{Best, DataCursor, EvalState, Identity, RunState};

use crate::{Error, Result, files};

/// File names in a checkpoint beside those of the adapter or model.
pub(crate) const OPTIMIZER_FILE: &str = "optimizer.safetensors";
pub(crate) const PROJECTION_OPTIMIZER_FILE: &str = "projection_optimizer.safetensors";
pub(crate) const BEFORE_FILE: &str = "before.safetensors";
pub(crate) const SETTINGS_FILE: &str = "settings.toml";
const STATE_FILE: &str = "state.toml";
/// Bytes of `state.toml` or `settings.toml`; the names of all parameters take less than one.
const TEXT_BYTES_MAX: u64 = 64 << 20;
const DIRECTORY: &str = "checkpoints";
const BEST_LINK: &str = "best";
/// What begins like this was being written, or removed, when its process ended.
const TEMPORARY: &str = ".tmp-";

/// The checkpoints of one run.
pub(crate) struct Checkpoints<D = RealDisk> {
    run: PathBuf,
    /// How many of the newest stay; at least one.
    keep_last: usize,
    disk: D,
}

impl Checkpoints {
    /// Those of the run in `run`; removes what a crash left.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn open(run: &Path, keep_last: usize) -> Result<Self> {
        Self::on(RealDisk, run, keep_last)
    }
}

impl<D: Disk> Checkpoints<D> {
    fn on(disk: D, run: &Path, keep_last: usize) -> Result<Self> {
        let checkpoints = Self {
            run: run.to_owned(),
            keep_last: keep_last.max(1),
            disk,
        };
        checkpoints.remove_leftovers()?;
        Ok(checkpoints)
    }

    fn root(&self) -> PathBuf {
        self.run.join(DIRECTORY)
    }

    /// Writes one and removes those that are neither among the newest nor the best. `best` points to the best one then.
    ///
    /// # Errors
    /// The path that the file system refused; everything that was there before is still there.
    pub fn save(&self, mut state: RunState, files: Vec<(&str, Content)>) -> Result<PathBuf> {
        let name = directory_name(state.step);
        let (root, disk) = (self.root(), &self.disk);
        let (temporary, path) = (root.join(format!("{TEMPORARY}{name}")), root.join(&name));
        if !root.is_dir() {
            disk.create_dir(&root)?;
            disk.sync(&self.run)?;
        }
        if temporary.exists() {
            // An attempt of before that the file system refused.
            disk.remove_dir(&temporary)?;
        }
        disk.create_dir(&temporary)?;
        for (name, content) in &files {
            let file = temporary.join(name);
            self.put(&file, content)?;
            state.files.insert((*name).to_owned(), digest(&file)?);
        }
        let text = state
            .to_text()
            .map_err(|e| Error::file(&path, format!("the state as TOML: {e}")))?;
        self.put(&temporary.join(STATE_FILE), &Content::Bytes(text.into()))?;
        disk.sync(&temporary)?;
        disk.rename(&temporary, &path)?;
        disk.sync(&root)?;
        let best = state.evals.best.map(|best| best.step);
        self.point_to_best(best)?;
        self.remove_old(best)?;
        Ok(path)
    }

    /// The step of the newest checkpoint; 0 without one.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn newest(&self) -> Result<usize> {
        Ok(self.steps()?.pop().unwrap_or(0))
    }

    /// The newest checkpoint, where there is one.
    ///
    /// # Errors
    /// It is damaged: what is wrong, and which one before it can be used instead.
    pub fn latest(&self) -> Result<Option<Checkpoint>> {
        let steps = self.steps()?;
        let Some((&step, before)) = steps.split_last() else {
            return Ok(None);
        };
        let directory = self.root().join(directory_name(step));
        let reason = match Checkpoint::read(&directory, step) {
            Ok(checkpoint) => {
                if !checkpoint.is_sealed {
                    tracing::warn!(
                        "{} was written by a release without checksums: its tensors are as they were written, {STATE_FILE} is \
                         taken as it is",
                        directory.display()
                    );
                }
                return Ok(Some(checkpoint));
            }
            Err(reason) => reason,
        };
        let is_whole = |step: &&usize| {
            let directory = self.root().join(directory_name(**step));
            Checkpoint::read(&directory, **step).is_ok()
        };
        let remedy = match before.iter().rev().find(is_whole) {
            Some(whole) => format!(
                "remove this checkpoint to go on from {}, which is whole",
                directory_name(*whole)
            ),
            None => "no checkpoint before it is whole; copy it from a backup, or train anew with --out NEW_DIR".to_owned(),
        };
        Err(Error::file(&directory, format!("{reason}; {remedy}")))
    }

    /// Whether the checkpoint of step `best` can be used as the best one. `best` points to it then: a crash may have come
    /// between the two. Otherwise it points nowhere, and that is said.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn find_best(&self, best: usize) -> Result<bool> {
        let directory = self.root().join(directory_name(best));
        let Err(reason) = Checkpoint::read(&directory, best) else {
            self.point_to_best(Some(best))?;
            return Ok(true);
        };
        tracing::warn!(
            "the best checkpoint cannot be used ({}: {reason}); the next evaluation counts as the best",
            directory.display()
        );
        let link = self.run.join(BEST_LINK);
        if link.is_symlink() {
            self.disk.remove_file(&link)?;
        }
        Ok(false)
    }

    /// Makes `best` point to the checkpoint of step `best`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn point_to_best(&self, best: Option<usize>) -> Result<()> {
        let Some(step) = best else { return Ok(()) };
        let target = Path::new(DIRECTORY).join(directory_name(step));
        let link = self.run.join(BEST_LINK);
        if fs::read_link(&link).is_ok_and(|now| now == target) {
            return Ok(());
        }
        let temporary = self.run.join(format!("{TEMPORARY}{BEST_LINK}"));
        if temporary.is_symlink() {
            self.disk.remove_file(&temporary)?;
        }
        self.disk.symlink(&target, &temporary)?;
        self.disk.rename(&temporary, &link)?;
        self.disk.sync(&self.run)
    }

    /// Steps that have a checkpoint, in order.
    fn steps(&self) -> Result<Vec<usize>> {
        let names = self.names()?;
        let mut steps: Vec<usize> = names.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn names(&self) -> Result<Vec<String>> {
        let paths = files::if_there(files::list(&self.root()))?.unwrap_or_default();
        let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        Ok(paths.iter().filter_map(name).collect())
    }

    /// Writes one file down to the disk.
    fn put(&self, path: &Path, content: &Content) -> Result<()> {
        self.disk.write(path, content)?;
        self.disk.sync(path)
    }

    fn remove_old(&self, best: Option<usize>) -> Result<()> {
        let steps = self.steps()?;
        let old = steps.len().saturating_sub(self.keep_last);
        for &step in &steps[..old] {
            if Some(step) != best {
                self.remove(&directory_name(step))?;
            }
        }
        Ok(())
    }

    /// Renamed first: half of a checkpoint must not look like one.
    fn remove(&self, name: &str) -> Result<()> {
        let path = self.root().join(name);
        let temporary = self.root().join(format!("{TEMPORARY}{name}"));
        self.disk.rename(&path, &temporary)?;
        self.disk.remove_dir(&temporary)
    }

    fn remove_leftovers(&self) -> Result<()> {
        for name in self.names()? {
            if name.starts_with(TEMPORARY) {
                let path = self.root().join(name);
                self.disk.remove_dir(&path)?;
            }
        }
        Ok(())
    }
}

fn directory_name(step: usize) -> String {
    format!("step-{step:06}")
}

/// The step of a checkpoint's directory; `step-20`, which no run makes, is none.
fn step_of(name: &str) -> Option<usize> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (directory_name(step) == name).then_some(step)
}

/// The digest of a file, as hexadecimal.
pub(crate) fn digest(path: &Path) -> Result<String> {
    let file = files::open(path)?;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_reader(file)
        .map_err(Error::io("read", path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// A checkpoint whose files are all as they were written.
pub(crate) struct Checkpoint {
    directory: PathBuf,
    /// How far the run was.
    pub state: RunState,
    /// Whether checksums vouch for `state`.
    is_sealed: bool,
}

impl Checkpoint {
    /// Reads the state in `directory`, which is that of `step`, and the digest of every file.
    ///
    /// # Errors
    /// The file that is damaged, and in `state.toml` the field.
    fn read(directory: &Path, step: usize) -> std::result::Result<Self, String> {
        let of_state = |reason: String| format!("{STATE_FILE}: {reason}");
        let text = files::read_text(&directory.join(STATE_FILE), TEXT_BYTES_MAX)
            .map_err(|e| of_state(e.reason.to_string()))?;
        let (state, is_sealed) = RunState::from_text(&text).map_err(of_state)?;
        if state.step != step {
            return Err(of_state(format!(
                "step is {}, so this is not the checkpoint of that name",
                state.step
            )));
        }
        for (name, expected) in &state.files {
            let actual = digest(&directory.join(name)).map_err(|e| e.to_string())?;
            if actual != *expected {
                return Err(format!("{name} is not as it was written"));
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            state,
            is_sealed,
        })
    }

    /// The settings of the run that wrote it; none where a release before them did.
    ///
    /// # Errors
    /// A file that is no configuration.
    pub fn settings<C: DeserializeOwned>(&self) -> Result<Option<C>> {
        if !self.holds(SETTINGS_FILE) {
            return Ok(None);
        }
        files::read_toml(&self.directory.join(SETTINGS_FILE), TEXT_BYTES_MAX).map(Some)
    }

    /// Whether this file is one of those that were written, and looked at.
    fn holds(&self, name: &str) -> bool {
        self.state.files.contains_key(name)
    }
}
