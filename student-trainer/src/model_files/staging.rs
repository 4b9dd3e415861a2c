//! Provides the moment at which a finished directory appears: whole and on disk, or not at all.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use distill_program::output::{self, readable_by_all};
use tempfile::TempDir;

use crate::{Error, Result};

/// A directory under a temporary name, beside the place where it will appear. Dropped before that, it is removed.
pub(crate) struct Staging {
    directory: TempDir,
    parent: PathBuf,
    out: PathBuf,
}

impl Staging {
    /// Begins what will be `out`. An empty directory may be named as the result; whatever else is there stays as it is.
    ///
    /// # Errors
    /// A directory with something in it, something that is no directory, or a file system that refuses.
    pub fn new(out: &Path) -> Result<Self> {
        refuse_used(out)?;
        // A link stays, and what it points to appears.
        let out = output::followed(out).map_err(Error::io("read the link", out))?;
        let parent = out.parent().filter(|p| !p.as_os_str().is_empty());
        let parent = parent.map_or_else(|| PathBuf::from("."), PathBuf::from);
        fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
        let directory = tempfile::Builder::new()
            .prefix(".unfinished-")
            .tempdir_in(&parent)
            .map_err(Error::io("create a directory in", &parent))?;
        Ok(Self {
            directory,
            parent,
            out,
        })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Gives the directory its name: a crash leaves a whole directory or none of that name.
    ///
    /// # Errors
    /// What the file system refused; everything is removed then.
    pub fn publish(self) -> Result<()> {
        let directory = self.path();
        let entries =
            fs::read_dir(directory).map_err(Error::io("read the directory", directory))?;
        for entry in entries {
            let path = entry
                .map_err(Error::io("read the directory", directory))?
                .path();
            // Libraries write through temporary files, which are private.
            let file = File::open(&path).map_err(Error::io("open", &path))?;
            readable_by_all(&file).map_err(Error::io("set the mode of", &path))?;
            sync(&path)?;
        }
        enterable_by_all(directory)?;
        sync(directory)?;
        fs::rename(directory, &self.out).map_err(Error::io("rename to", &self.out))?;
        // There is nothing left under the temporary name that could be removed.
        let _ = self.directory.keep();
        sync(&self.parent)
    }
}

fn refuse_used(out: &Path) -> Result<()> {
    match fs::read_dir(out) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("read the directory", out)(e)),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::file(
                out,
                "is there already and not empty; name a new directory with --out",
            )),
        },
    }
}

fn sync(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

/// Temporary directories are private; results are as readable as any other.
fn enterable_by_all(directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
        .map_err(Error::io("set the mode of", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_appears_whole_and_only_where_nothing_was() {
        let parent = tempfile::tempdir().unwrap();
        let out = parent.path().join("out");
        let staged = || {
            let staging = Staging::new(&out).unwrap();
            fs::write(staging.path().join("a"), "whole").unwrap();
            staging
        };
        // An empty directory is taken over.
        fs::create_dir(&out).unwrap();
        let (first, second) = (staged(), staged());
        first.publish().unwrap();
        assert_eq!(fs::read_to_string(out.join("a")).unwrap(), "whole");
        let message = Staging::new(&out).err().unwrap().to_string();
        assert!(message.contains("not empty"), "{message}");
        assert!(Staging::new(&out.join("a")).is_err());
        // What cannot appear leaves nothing behind, and neither does what is given up.
        assert!(second.publish().is_err());
        drop(Staging::new(&parent.path().join("other")).unwrap());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
