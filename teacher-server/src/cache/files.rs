//! Provides the few file operations that a cache is made of, so that a test can fail or crash at every one of them.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use distill_program::{FileError, files as disk};

use crate::{Error, Result};

/// How much to read of `bytes` where `most` will do.
pub fn at_most(bytes: u64, most: usize) -> usize {
    usize::try_from(bytes).map_or(most, |bytes| bytes.min(most))
}

/// Files below one directory, by names like `shards/000007`. What the medium must do is written at each operation; it may
/// lose or half-write, in a crash, whatever was not synced. Errors are `Io` and name the place.
pub trait Files: Send + Sync {
    /// Names of the files of a directory, without it; empty where there is no such directory.
    fn list(&self, directory: &str) -> Result<Vec<String>>;

    /// Bytes of a file; `None` where there is none.
    fn length(&self, name: &str) -> Result<Option<u64>>;

    /// `bytes` bytes from `offset` on.
    fn read(&self, name: &str, offset: u64, bytes: usize) -> Result<Vec<u8>>;

    /// Writes at `offset`, making the file where it is missing.
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Cuts a file.
    fn truncate(&self, name: &str, bytes: u64) -> Result<()>;

    /// Returns once the content of the file would survive a power loss.
    fn sync(&self, name: &str) -> Result<()>;

    /// Gives a file another name, unless that one is taken: then it is false. Atomic.
    fn rename_if_absent(&self, from: &str, to: &str) -> Result<bool>;

    /// Removes a file, where it is there.
    fn remove(&self, name: &str) -> Result<()>;

    /// Makes a directory and those above it, where they are missing.
    fn create_directory(&self, name: &str) -> Result<()>;

    /// Returns once the names in the directory would survive a power loss.
    fn sync_directory(&self, name: &str) -> Result<()>;

    /// Where a file is, for messages.
    fn path(&self, name: &str) -> PathBuf;

    /// Whether others write here meanwhile, on this machine or another: a name that was free may be taken.
    fn is_shared(&self) -> bool {
        false
    }

    /// Reads a file anew the next time, and no copy of it.
    fn forget(&self, _name: &str) {}
}

/// Files of the operating system.
pub struct LocalFiles {
    root: PathBuf,
}

impl LocalFiles {
    /// Below `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }
}

impl Files for LocalFiles {
    fn list(&self, directory: &str) -> Result<Vec<String>> {
        let paths = disk::if_there(disk::list(&self.path(directory)))?.unwrap_or_default();
        let files = paths.iter().filter(|path| path.is_file());
        // A name that is not UTF-8 is none of a cache's.
        let names = files.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        Ok(names.collect())
    }

    fn length(&self, name: &str) -> Result<Option<u64>> {
        let path = self.path(name);
        let found = fs::metadata(&path).map_err(FileError::at("read", &path));
        Ok(disk::if_there(found)?.map(|found| found.len()))
    }

    fn read(&self, name: &str, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let path = self.path(name);
        let mut buffer = vec![0; bytes];
        let read = disk::open(&path)?.read_exact_at(&mut buffer, offset);
        read.map_err(Error::io("read", &path))?;
        Ok(buffer)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let path = self.path(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&path);
        let written = file.and_then(|file| file.write_all_at(bytes, offset));
        written.map_err(Error::io("write", &path))
    }

    fn truncate(&self, name: &str, bytes: u64) -> Result<()> {
        let path = self.path(name);
        let file = OpenOptions::new().write(true).open(&path);
        let cut = file.and_then(|file| file.set_len(bytes));
        cut.map_err(Error::io("cut", &path))
    }

    fn sync(&self, name: &str) -> Result<()> {
        Ok(disk::sync(&self.path(name))?)
    }

    fn rename_if_absent(&self, from: &str, to: &str) -> Result<bool> {
        let (from, to) = (self.path(from), self.path(to));
        // A second name fails where it is taken, on every POSIX file system; the first one goes afterwards.
        let renamed = match fs::hard_link(&from, &to) {
            Ok(()) => fs::remove_file(&from),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            // Without hard links (FAT, some network mounts) the lock keeps other writers away.
            Err(_) if !to.exists() => fs::rename(&from, &to),
            Err(error) => Err(error),
        };
        renamed.map_err(Error::io("rename to", &to))?;
        Ok(true)
    }

    fn remove(&self, name: &str) -> Result<()> {
        Ok(disk::remove(&self.path(name))?)
    }

    fn create_directory(&self, name: &str) -> Result<()> {
        Ok(disk::create_directory(&self.path(name))?)
    }

    fn sync_directory(&self, name: &str) -> Result<()> {
        self.sync(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        match name {
            "" => self.root.clone(),
            name => self.root.join(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_do_what_they_say() {
        let directory = tempfile::tempdir().unwrap();
        let files = LocalFiles::new(directory.path());
        files.create_directory("a/b").unwrap();
        files.write_at("a/b/x", 0, b"hello").unwrap();
        files.write_at("a/b/x", 5, b" world").unwrap();
        files.sync("a/b/x").unwrap();
        files.sync_directory("a/b").unwrap();
        assert_eq!(files.read("a/b/x", 3, 5).unwrap(), b"lo wo");
        assert!(files.read("a/b/x", 9, 5).is_err());
        files.truncate("a/b/x", 4).unwrap();
        assert_eq!(files.length("a/b/x").unwrap(), Some(4));
        files.write_at("a/b/y", 0, b"other").unwrap();
        assert!(!files.rename_if_absent("a/b/y", "a/b/x").unwrap());
        assert!(files.rename_if_absent("a/b/y", "a/b/z").unwrap());
        assert_eq!(files.list("a/b").unwrap(), ["x", "z"]);
        files.remove("a/b/x").unwrap();
        files.remove("a/b/x").unwrap();
        assert_eq!(files.length("a/b/x").unwrap(), None);
        assert_eq!(files.list("a").unwrap(), Vec::<String>::new());
        assert_eq!(files.list("nowhere").unwrap(), Vec::<String>::new());
    }
}
