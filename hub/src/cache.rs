//! Provides the layout of the cache: blobs by digest, snapshots of relative links to them, refs, and locks between processes.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    thread,
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

/// Held while a blob is fetched; the same file that `huggingface_hub` locks, in the same way (flock).
pub(crate) struct Lock {
    _file: File,
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
        let text = distill_files::read_text(&path, COMMIT_BYTES_MAX).ok()?;
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
        let temporary = beside(&path);
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(commit.as_bytes())?;
            file.sync_all()
        });
        written.map_err(Error::io("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(Error::io("write", &path))?;
        sync_parent(&path)
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
        fs::rename(self.partial(etag), &blob).map_err(Error::io("write", &blob))?;
        sync_parent(&blob)
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
        let temporary = beside(&link);
        symlink(&target, &temporary).map_err(Error::io("create", &temporary))?;
        fs::rename(&temporary, &link).map_err(Error::io("create", &link))?;
        sync_parent(&link)
    }

    /// Waits until no other process fetches the blob with this etag.
    ///
    /// # Errors
    /// `Stopped`, or a file system that refuses.
    pub fn lock(&self, etag: &str, stopped: &dyn Fn() -> bool) -> Result<Lock> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = opened.map_err(Error::io("open", &path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!(
                    "another process fetches {}; waiting for it",
                    self.blob(etag).display()
                );
            }
            pause(POLL, stopped)?;
        }
    }
}

/// The names of the files in a directory; a link to a blob that is gone is no file.
fn file_names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let files = entries
        .filter_map(io::Result::ok)
        .filter(|entry| entry.path().is_file());
    files
        .filter_map(|entry| entry.file_name().into_string().ok())
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
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(Error::io("create", parent)),
        None => Ok(()),
    }
}

/// Makes a new name last through a loss of power.
fn sync_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(Error::io("write", parent))
}

/// A name in the same directory that nobody else uses.
fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}-{count}.tmp", process::id()))
}
