//! Provides the layout of the cache: blobs by digest, snapshots of relative links to them, refs, and locks between processes.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
};

use distill_program::{
    FileError,
    files::{self, directory_of},
    lock::{Attempt, Lock},
    output,
};

use crate::{
    Error, Result,
    limits::{COMMIT_BYTES_MAX, POLL},
    name::{is_commit, is_file_name},
    selection::TEMPLATES,
};

/// One repository's part of the cache: `models--org--name/{blobs,refs,snapshots}`.
pub(crate) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// The place of `repo` (`org/name`) in the cache. Nothing is created.
    pub fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self {
            root: cache.join(&name),
            locks: cache.join(".locks").join(&name),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of one commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The names of the files that are there in whole of one commit.
    pub fn files(&self, commit: &str) -> Vec<String> {
        let snapshot = self.snapshot(commit);
        let mut files = file_names(&snapshot);
        let templates = file_names(&snapshot.join(TEMPLATES));
        files.extend(templates.iter().map(|name| format!("{TEMPLATES}/{name}")));
        files
    }

    /// The commit that a branch or tag stood for when it was asked for last.
    pub fn commit(&self, revision: &str) -> Option<String> {
        let path = self.root.join("refs").join(revision);
        let text = files::read_text(&path, COMMIT_BYTES_MAX).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Notes what a branch or tag stands for, in one step.
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_parent(&path)?;
        Ok(output::write(&path, commit.as_bytes())?)
    }

    /// Where the blob with this etag is or will be.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Where a blob is until it is whole.
    pub fn partial(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Gives a whole blob its name.
    pub fn publish(&self, etag: &str) -> Result<()> {
        let blob = self.blob(etag);
        fs::rename(self.partial(etag), &blob).map_err(FileError::at("write", &blob))?;
        Ok(files::sync(directory_of(&blob))?)
    }

    /// Makes `name` of a commit's snapshot the blob with this etag, through a relative link as `huggingface_hub` makes.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        debug_assert!(name.split('/').all(is_file_name) && is_file_name(etag));
        let link = self.snapshot(commit).join(name);
        let up = "../".repeat(2 + name.matches('/').count());
        let target = Path::new(&up).join("blobs").join(etag);
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            return Ok(());
        }
        create_parent(&link)?;
        // A link to a blob that is gone is replaced in one step; nobody sees the name missing.
        let directory = directory_of(&link);
        let made = tempfile::Builder::new().make_in(directory, |path| symlink(&target, path));
        let replaced = made.and_then(|made| Ok(made.into_temp_path().persist(&link)?));
        replaced.map_err(FileError::at("create", &link))?;
        Ok(files::sync(directory)?)
    }

    /// Waits until no other process fetches the blob with this etag; the lock is held meanwhile, on the same file that
    /// `huggingface_hub` locks, in the same way (flock).
    ///
    /// # Errors
    /// `Stopped`, or a file system that refuses.
    pub fn lock(&self, etag: &str, stopped: &dyn Fn() -> bool) -> Result<Lock> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let mut told = false;
        loop {
            let holder = match Lock::take(&path)? {
                Attempt::Taken(lock) => return Ok(lock),
                Attempt::HeldBy(holder) => holder,
            };
            if !std::mem::replace(&mut told, true) {
                let blob = self.blob(etag);
                tracing::info!("{holder} fetches {}; waiting for it", blob.display());
            }
            pause(POLL, stopped)?;
        }
    }
}

/// The names of the files in a directory; a link to a blob that is gone is no file.
fn file_names(directory: &Path) -> Vec<String> {
    let found = files::list(directory).unwrap_or_default();
    let files = found.iter().filter(|path| path.is_file());
    files
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect()
}

/// Sleeps, unless someone asks to stop.
pub(crate) fn pause(duration: std::time::Duration, stopped: &dyn Fn() -> bool) -> Result<()> {
    let mut left = duration;
    while !left.is_zero() {
        if stopped() {
            return Err(Error::Stopped);
        }
        let step = left.min(POLL);
        thread::sleep(step);
        left -= step;
    }
    Ok(())
}

/// Makes the directory of a file.
pub(crate) fn create_parent(path: &Path) -> Result<()> {
    Ok(files::create_directory(directory_of(path))?)
}
