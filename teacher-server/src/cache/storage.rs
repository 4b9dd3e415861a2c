//! Provides the storage of what is sealed: whole objects that appear at once under a name that was free.

use std::{path::PathBuf, sync::Arc};

use super::files::Files;
use crate::{Error, Result};

/// Where sealed shards lie. Its one strong operation is `put_if_absent`, which object stores have as well.
pub trait Storage: Send + Sync {
    /// Bytes of an object; `None` where there is none.
    ///
    /// # Errors
    /// `Io` naming the place.
    fn length(&self, name: &str) -> Result<Option<u64>>;

    /// `bytes` bytes from `offset` on.
    ///
    /// # Errors
    /// `Io` naming the place.
    fn read(&self, name: &str, offset: u64, bytes: usize) -> Result<Vec<u8>>;

    /// Makes an object of `bytes`. Afterwards all of it is there and survives a power loss, or nothing is; false where the
    /// name was taken, and then the object is as it was.
    ///
    /// # Errors
    /// `Io` naming the place, e.g. a full disk.
    fn put_if_absent(&self, name: &str, bytes: &[u8]) -> Result<bool>;

    /// Takes an object out of the way, keeping its bytes for whoever wants to look at them; the name is free then, also where
    /// somebody removed the object.
    ///
    /// # Errors
    /// `Io` naming the place.
    fn set_aside(&self, name: &str) -> Result<()>;

    /// Where an object is, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// Objects that are being written; whatever lies here at the start is left over from a crash.
pub const TEMPORARY: &str = "tmp";
/// Objects that were set aside.
pub const DAMAGED: &str = "damaged";

/// Objects as files: written aside, synced, renamed, and the directory synced.
pub struct LocalStorage {
    files: Arc<dyn Files>,
}

impl LocalStorage {
    /// Over the files of a cache.
    pub fn new(files: Arc<dyn Files>) -> Self {
        Self { files }
    }

    /// Removes what a crash left half-written.
    ///
    /// # Errors
    /// `Io` naming the place.
    pub fn clean(&self) -> Result<()> {
        let names = self.files.list(TEMPORARY);
        for name in names.map_err(Error::io("read", &self.path(TEMPORARY)))? {
            let name = format!("{TEMPORARY}/{name}");
            let removed = self.files.remove(&name);
            removed.map_err(Error::io("remove", &self.path(&name)))?;
        }
        Ok(())
    }

    fn write(&self, temporary: &str, name: &str, bytes: &[u8]) -> Result<bool> {
        let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
        for needed in [TEMPORARY, directory] {
            let made = self.files.create_directory(needed);
            made.map_err(Error::io("create", &self.path(needed)))?;
        }
        // The file may be longer where an earlier attempt failed half-way.
        let removed = self.files.remove(temporary);
        removed.map_err(Error::io("remove", &self.path(temporary)))?;
        let written = self.files.write_at(temporary, 0, bytes);
        written.map_err(Error::io("write", &self.path(temporary)))?;
        let synced = self.files.sync(temporary);
        synced.map_err(Error::io("sync", &self.path(temporary)))?;
        let renamed = self.files.rename_if_absent(temporary, name);
        let renamed = renamed.map_err(Error::io("rename to", &self.path(name)))?;
        // The directory's own name must last as well, where it was made just now.
        for changed in [directory, ""] {
            let synced = self.files.sync_directory(changed);
            synced.map_err(Error::io("sync", &self.path(changed)))?;
        }
        Ok(renamed)
    }
}

impl Storage for LocalStorage {
    fn length(&self, name: &str) -> Result<Option<u64>> {
        let length = self.files.length(name);
        length.map_err(Error::io("read", &self.path(name)))
    }

    fn read(&self, name: &str, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let read = self.files.read(name, offset, bytes);
        read.map_err(Error::io("read", &self.path(name)))
    }

    fn put_if_absent(&self, name: &str, bytes: &[u8]) -> Result<bool> {
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

    fn set_aside(&self, name: &str) -> Result<()> {
        if self.length(name)?.is_none() {
            return Ok(());
        }
        let made = self.files.create_directory(DAMAGED);
        made.map_err(Error::io("create", &self.path(DAMAGED)))?;
        let base = name.rsplit_once('/').map_or(name, |(_, base)| base);
        for attempt in 0.. {
            let to = format!("{DAMAGED}/{base}.{attempt}");
            let renamed = self.files.rename_if_absent(name, &to);
            if renamed.map_err(Error::io("set aside", &self.path(name)))? {
                break;
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path(name)
    }
}
