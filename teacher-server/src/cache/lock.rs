//! Provides the lock that keeps a second writer out of a cache and tells it who the first one is.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use crate::{Error, Result};

/// Name of the lock's file. It stays when its holder ends; only the lock on it counts.
pub(super) const LOCK: &str = "LOCK";
/// Most of what a holder says of itself.
const HOLDER_BYTES_MAX: u64 = 1024;

/// Held as long as it lives; the system gives it back however the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the cache in `directory`.
    ///
    /// # Errors
    /// `Cache` naming the holder; `Io`.
    pub fn take(directory: &Path) -> Result<Self> {
        let path = directory.join(LOCK);
        let options = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options
        };
        let mut file = options().open(&path).map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who holds it is a courtesy: what cannot be read is left out.
                let _ = file.take(HOLDER_BYTES_MAX).read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process",
                    holder => holder,
                };
                return Err(Error::Cache {
                    path: directory.to_owned(),
                    reason: format!(
                        "{holder} is writing to it; wait until it has ended, or name another directory"
                    ),
                });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        let holder = format!(
            "process {} ({})\n",
            std::process::id(),
            std::env::args().take(2).collect::<Vec<_>>().join(" ")
        );
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(holder.as_bytes()));
        written.map_err(Error::io("write", &path))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_told_who_the_first_one_is() {
        let directory = tempfile::tempdir().unwrap();
        let lock = Lock::take(directory.path()).unwrap();
        let error = Lock::take(directory.path()).unwrap_err().to_string();
        let process = format!("process {}", std::process::id());
        assert!(error.contains(&process), "{error}");
        drop(lock);
        Lock::take(directory.path()).unwrap();
    }
}
