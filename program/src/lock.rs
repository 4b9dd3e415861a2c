//! Provides the lock that keeps other processes out and tells them who is in: held by the kernel, so it ends with its holder.

use std::{
    fs::{File, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    FileError,
    files::{self, Result},
    inherited,
};

/// Attempts at a lock whose file is removed while it is taken.
const ATTEMPTS_MAX: usize = 16;
/// Most of what a holder says of itself.
const HOLDER_BYTES_MAX: u64 = 1024;

/// Held until it is dropped or the process ends, however it ends. Its file stays; only the lock on it counts.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    /// Whether other processes may hold it too.
    is_shared: AtomicBool,
}

/// What an attempt at a lock came to.
#[derive(Debug)]
pub enum Attempt {
    /// It is this process's.
    Taken(Lock),
    /// It is another's, such as `process 12 (student-trainer train)`.
    HeldBy(String),
}

impl Lock {
    /// Takes the lock on the file at `path`, which is made where it is missing, or says who has it.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn take(path: &Path) -> Result<Attempt> {
        for _ in 0..ATTEMPTS_MAX {
            let mut file = files::open_or_create(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Attempt::HeldBy(holder(file))),
                Err(TryLockError::Error(error)) => return Err(FileError::at("lock", path)(error)),
            }
            // A holder may remove its file, which must not be the one locked here.
            let locked = file.metadata().map_err(FileError::at("read", path))?;
            if !path.metadata().is_ok_and(|now| now.ino() == locked.ino()) {
                continue;
            }
            // For the message of whoever comes second; the lock itself needs no content.
            let command = std::env::args().take(2).collect::<Vec<_>>().join(" ");
            let holder = format!("process {} ({command})\n", std::process::id());
            file.set_len(0)
                .and_then(|()| file.write_all(holder.as_bytes()))
                .map_err(FileError::at("write", path))?;
            let path = path.to_owned();
            let is_shared = AtomicBool::new(false);
            return Ok(Attempt::Taken(Self {
                file,
                path,
                is_shared,
            }));
        }
        let reason = "other processes take it and remove it all the time";
        Err(FileError::at("lock", path)(io::Error::other(reason)))
    }

    /// Lets the processes that this one starts from now on hold it too: it is free when the last of them has ended.
    ///
    /// # Errors
    /// The system refuses.
    pub fn share(&self) -> io::Result<()> {
        self.is_shared.store(true, Ordering::Relaxed);
        inherited::share(&self.file)
    }

    /// Removes the file, while the lock is held: for work that never began.
    pub fn remove(&self) {
        // It is in nobody's way where it stays.
        let _ = files::remove(&self.path);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A process that is just being started has the file open until it is what it will be.
        if !self.is_shared.load(Ordering::Relaxed) {
            let _ = self.file.unlock();
        }
    }
}

/// What the holder says of itself: a courtesy, and it may be between locking and writing.
fn holder(file: File) -> String {
    let mut text = String::new();
    let _ = file.take(HOLDER_BYTES_MAX).read_to_string(&mut text);
    match text.trim() {
        "" => "another process".to_owned(),
        holder => holder.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_the_lock_and_the_next_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let Attempt::Taken(first) = Lock::take(&path).unwrap() else {
            panic!("nobody has it")
        };
        let Attempt::HeldBy(holder) = Lock::take(&path).unwrap() else {
            panic!("the first has it")
        };
        let process = format!("process {} ", std::process::id());
        assert!(holder.starts_with(&process), "{holder}");
        drop(first);
        let Attempt::Taken(next) = Lock::take(&path).unwrap() else {
            panic!("the first has left it")
        };
        next.remove();
        assert!(!path.exists());
        drop(next);
        assert!(matches!(Lock::take(&path).unwrap(), Attempt::Taken(_)));
    }
}
