//! Provides the place of a cache: an address of object storage, or a directory: a new one, an empty one, or one that holds a
//! cache or what a failed start left of it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use distill_objects::is_remote;
use distill_program::{
    files,
    lock::{Attempt, Lock},
};

use super::{
    Access, HEADER, LOCK, MEMBERS, SEGMENTS,
    contents::SHARDS,
    files::{Files, LocalFiles},
    matrices::{BASIS, PROJECTION, VOCABULARY},
    partial::PARTIAL,
    remote::RemoteFiles,
    storage::{DAMAGED, TEMPORARY},
};
use crate::{Error, Result};

/// All that a cache puts into its directory.
const OWN: [&str; 11] = [
    HEADER, SEGMENTS, MEMBERS, SHARDS, LOCK, BASIS, PROJECTION, VOCABULARY, PARTIAL, DAMAGED,
    TEMPORARY,
];
/// What the root of a disk holds.
const OF_A_DISK: &str = "lost+found";
/// Of what a shell writes beside a capture that it starts.
const SHELL_LOG: &str = "log";

/// Whether a cache may be in `path`; looked at before a model is read, and again before anything is written.
///
/// # Errors
/// `Cache` where it holds somebody's other files and no cache; `Io`.
pub(super) fn check(path: &Path) -> Result<()> {
    let found: Vec<PathBuf> = if is_remote(path) {
        let objects = RemoteFiles::reading(path)?.list("")?;
        objects.into_iter().map(PathBuf::from).collect()
    } else if path.exists() {
        files::list(path)?
    } else {
        Vec::new()
    };
    let name = |entry: &Path| entry.file_name().unwrap_or_default().to_owned();
    if found.iter().any(|entry| name(entry) == HEADER) {
        return Ok(());
    }
    for entry in found {
        let name = name(&entry);
        let is_log = entry.extension() == Some(OsStr::new(SHELL_LOG));
        let is_known = OWN.iter().any(|own| name == *own) || name == OF_A_DISK;
        if !is_known && !is_log {
            return Err(Error::cache(
                path,
                format!(
                    "there is no cache here, but {}, which none wrote; name a new or an empty place",
                    name.display()
                ),
            ));
        }
    }
    Ok(())
}

/// The files of a cache in `path`, and a lock where they are to be written, which keeps others out of a directory.
///
/// # Errors
/// As [`check`]; `Cache` where somebody else holds the lock.
pub(super) fn open(path: &Path, access: Access) -> Result<(Arc<dyn Files>, Option<Lock>)> {
    match (is_remote(path), access) {
        (true, Access::Write) => {
            let (files, lock) = RemoteFiles::writing(path)?;
            Ok((Arc::new(files), Some(lock)))
        }
        (true, Access::Read | Access::Look) => Ok((Arc::new(RemoteFiles::reading(path)?), None)),
        (false, Access::Write) => {
            make(path)?;
            Ok((Arc::new(LocalFiles::new(path)), Some(take_lock(path)?)))
        }
        (false, Access::Read | Access::Look) => Ok((Arc::new(LocalFiles::new(path)), None)),
    }
}

/// Keeps a second writer out of the cache in `directory`.
fn take_lock(directory: &Path) -> Result<Lock> {
    match Lock::take(&directory.join(LOCK))? {
        Attempt::Taken(lock) => Ok(lock),
        Attempt::HeldBy(holder) => Err(Error::cache(
            directory,
            format!(
                "{holder} is writing to it; wait until it has ended, or name another directory"
            ),
        )),
    }
}

/// Makes the directory, unless it is there.
fn make(path: &Path) -> Result<()> {
    check(path)?;
    Ok(files::create_directory(path)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn somebodys_other_files_are_refused_and_what_a_failed_start_left_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        make(&path).unwrap();
        for left in [LOCK, TEMPORARY, BASIS, OF_A_DISK, "capture.log"] {
            fs::create_dir_all(path.join(left)).unwrap();
        }
        make(&path).unwrap();
        fs::write(path.join("thesis.tex"), "").unwrap();
        let message = make(&path).unwrap_err().to_string();
        assert!(
            message.contains("thesis.tex") && message.contains("an empty place"),
            "{message}"
        );
        // Beside a cache it is nobody's business.
        fs::write(path.join(HEADER), "").unwrap();
        make(&path).unwrap();
    }
}
