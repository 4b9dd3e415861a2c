//! Provides the few file operations that a cache is made of, so that a test can fail or crash at every one of them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Files below one directory, by names like `shards/000007`. What the medium must do is written at each operation; it may
/// lose or half-write, in a crash, whatever was not synced.
pub trait Files: Send + Sync {
    /// Names of the files of a directory, without it; empty where there is no such directory.
    fn list(&self, directory: &str) -> io::Result<Vec<String>>;

    /// Bytes of a file; `None` where there is none.
    fn length(&self, name: &str) -> io::Result<Option<u64>>;

    /// `bytes` bytes from `offset` on.
    fn read(&self, name: &str, offset: u64, bytes: usize) -> io::Result<Vec<u8>>;

    /// Writes at `offset`, making the file where it is missing.
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file.
    fn truncate(&self, name: &str, bytes: u64) -> io::Result<()>;

    /// Returns once the content of the file would survive a power loss.
    fn sync(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name, unless that one is taken: then it is false. Atomic.
    fn rename_if_absent(&self, from: &str, to: &str) -> io::Result<bool>;

    /// Removes a file, where it is there.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes a directory and those above it, where they are missing.
    fn create_directory(&self, name: &str) -> io::Result<()>;

    /// Returns once the names in the directory would survive a power loss.
    fn sync_directory(&self, name: &str) -> io::Result<()>;

    /// Where a file is, for messages.
    fn path(&self, name: &str) -> PathBuf;
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

    fn open(&self, name: &str) -> io::Result<File> {
        File::open(self.path(name))
    }
}

impl Files for LocalFiles {
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.path(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            // A name that is not UTF-8 is none of a cache's.
            if let (true, Ok(name)) = (
                entry.file_type()?.is_file(),
                entry.file_name().into_string(),
            ) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn length(&self, name: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.path(name)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&self, name: &str, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        distill_files::open(&self.path(name))?.read_exact_at(&mut buffer, offset)?;
        Ok(buffer)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false);
        file.open(self.path(name))?.write_all_at(bytes, offset)
    }

    fn truncate(&self, name: &str, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        file.set_len(bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.open(name)?.sync_all()
    }

    fn rename_if_absent(&self, from: &str, to: &str) -> io::Result<bool> {
        let (from, to) = (self.path(from), self.path(to));
        // A second name fails where it is taken, on every POSIX file system; the first one goes afterwards.
        match fs::hard_link(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            // Without hard links (FAT, some network mounts) the lock keeps other writers away.
            Err(_) if !to.exists() => {
                fs::rename(&from, &to)?;
                return Ok(true);
            }
            Err(error) => return Err(error),
        }
        fs::remove_file(&from)?;
        Ok(true)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        fs::create_dir_all(self.path(name))
    }

    fn sync_directory(&self, name: &str) -> io::Result<()> {
        self.open(name)?.sync_all()
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
