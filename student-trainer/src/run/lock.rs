//! Provides the lock that keeps a second trainer out of a run directory: held by the kernel, so it ends with its holder.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    path::Path,
};

use crate::{Error, Result};

const FILE: &str = ".lock";

/// Held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub(super) struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock of `directory`.
    ///
    /// # Errors
    /// Another process holds it, by its id; or the file system refuses.
    pub fn take(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(directory, &mut file)),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        // For the message of whoever comes second; the lock itself needs no content.
        let pid = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.write_all(pid.as_bytes()))
            .map_err(Error::io("write", &path))?;
        Ok(Self { _file: file })
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
