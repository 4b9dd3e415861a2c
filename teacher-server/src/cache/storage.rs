//! Provides the storage of what is sealed: whole objects that appear at once under a name that was free.

use std::{path::PathBuf, sync::Arc};

use super::files::Files;
use crate::{Error, Result};

/// Objects that are being written; whatever lies here at the start is left over from a crash.
pub const TEMPORARY: &str = "tmp";
/// Objects that were set aside.
pub const DAMAGED: &str = "damaged";

/// Where sealed shards lie: files that are written aside, synced, renamed, and the directory synced. Its one strong operation is
/// `put_if_absent`. Errors are `Io` and name the place.
#[derive(Clone)]
pub struct Storage {
    files: Arc<dyn Files>,
}

impl Storage {
    /// Over the files of a cache.
    pub fn new(files: Arc<dyn Files>) -> Self {
        Self { files }
    }

    /// Removes what a crash left half-written.
    pub fn clean(&self) -> Result<()> {
        for name in self.files.list(TEMPORARY)? {
            self.files.remove(&format!("{TEMPORARY}/{name}"))?;
        }
        Ok(())
    }

    /// Bytes of an object; `None` where there is none.
    pub fn length(&self, name: &str) -> Result<Option<u64>> {
        self.files.length(name)
    }

    /// `bytes` bytes from `offset` on.
    pub fn read(&self, name: &str, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        self.files.read(name, offset, bytes)
    }

    /// Reads an object anew the next time, and no copy of it.
    pub fn forget(&self, name: &str) {
        self.files.forget(name);
    }

    /// What `read` gives of an object, which it reads once more where `is_damaged` says so: it may be a copy that is.
    pub fn read_anew<T>(
        &self,
        name: &str,
        is_damaged: impl FnOnce(&Error) -> bool,
        read: impl Fn() -> Result<T>,
    ) -> Result<T> {
        match read() {
            Err(error) if self.files.is_shared() && is_damaged(&error) => {
                self.forget(name);
                read()
            }
            done => done,
        }
    }

    /// Where an object is, for messages.
    pub fn path(&self, name: &str) -> PathBuf {
        self.files.path(name)
    }

    /// Makes an object of `bytes`. Afterwards all of it is there and survives a power loss, or nothing is; false where the
    /// name was taken, and then the object is as it was.
    pub fn put_if_absent(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        if self.length(name)?.is_some() {
            return Ok(false);
        }
        let temporary = format!("{TEMPORARY}/{}", name.replace('/', "-"));
        let written = self.write(&temporary, name, bytes);
        if !matches!(written, Ok(true)) {
            // Best effort: `clean` takes what stays. The reason for the failure is what the caller needs.
            let _ = self.files.remove(&temporary);
        }
        written
    }

    fn write(&self, temporary: &str, name: &str, bytes: &[u8]) -> Result<bool> {
        let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
        self.files.create_directory(TEMPORARY)?;
        self.files.create_directory(directory)?;
        // The file may be longer where an earlier attempt failed half-way.
        self.files.remove(temporary)?;
        self.files.write_at(temporary, 0, bytes)?;
        self.files.sync(temporary)?;
        let renamed = self.files.rename_if_absent(temporary, name)?;
        self.files.sync_directory(directory)?;
        // The directory's own name must last as well, where it was made just now.
        self.files.sync_directory("")?;
        Ok(renamed)
    }

    /// Takes an object out of the way, keeping its bytes for whoever wants to look at them; the name is free then, also where
    /// somebody removed the object.
    pub fn set_aside(&self, name: &str) -> Result<()> {
        if self.length(name)?.is_none() {
            return Ok(());
        }
        self.files.create_directory(DAMAGED)?;
        let base = name.rsplit_once('/').map_or(name, |(_, base)| base);
        for attempt in 0.. {
            let to = format!("{DAMAGED}/{base}.{attempt}");
            if self.files.rename_if_absent(name, &to)? {
                break;
            }
        }
        Ok(())
    }
}
