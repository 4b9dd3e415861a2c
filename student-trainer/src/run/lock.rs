//! Provides the lock that keeps a second trainer out of a run directory: held by the kernel, so it ends with its holder.

use std::{
    fs::{File, TryLockError},
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

pub(super) const FILE: &str = ".lock";
/// Attempts at a lock whose file is removed while it is taken.
const ATTEMPTS_MAX: usize = 16;

/// Held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub(super) struct RunLock {
    _file: File,
    path: PathBuf,
}

impl RunLock {
    /// Takes the lock of `directory`.
    ///
    /// # Errors
    /// Another process holds it, by its id; or the file system refuses.
    pub fn take(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        for _ in 0..ATTEMPTS_MAX {
            let mut file =
                distill_files::open_or_create(&path).map_err(Error::io("open", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(in_use(directory, &mut file)),
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
            }
            // A holder whose run never began removes its file, which must not be the one locked here.
            let locked = file.metadata().map_err(Error::io("read", &path))?;
            if !path.metadata().is_ok_and(|now| now.ino() == locked.ino()) {
                continue;
            }
            // For the message of whoever comes second; the lock itself needs no content.
            let pid = format!("{}\n", std::process::id());
            file.set_len(0)
                .and_then(|()| file.write_all(pid.as_bytes()))
                .map_err(Error::io("write", &path))?;
            return Ok(Self { _file: file, path });
        }
        Err(Error::file(
            directory,
            "others start and end in this directory all the time; name another with --out",
        ))
    }

    /// Removes the file, while the lock is held: for a run that never began.
    pub fn remove(&self) {
        // It is in nobody's way where it stays.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn in_use(directory: &Path, file: &mut File) -> Error {
    let mut text = String::new();
    // The holder may be between locking and writing.
    let holder = match file.read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => format!("process {}", text.trim()),
        _ => "another process".to_owned(),
    };
    Error::file(
        directory,
        format!(
            "{holder} is training in this directory; wait for it or stop it, or name another with --out"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_the_lock_and_the_next_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunLock::take(dir.path()).unwrap();
        let message = RunLock::take(dir.path()).unwrap_err().to_string();
        let holder = format!("process {}", std::process::id());
        assert!(message.contains(&holder), "{message}");
        drop(first);
        RunLock::take(dir.path()).unwrap();
    }
}
