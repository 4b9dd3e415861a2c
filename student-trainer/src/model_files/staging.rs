//! Provides the moment at which a finished directory appears: whole and on disk, or not at all.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use distill_program::output;
use tempfile::TempDir;

use crate::{
    Error, Result,
    files::{self, directory_of},
};

/// A directory under a temporary name, beside the place where it will appear. Dropped before that, it is removed.
pub(crate) struct Staging {
    directory: TempDir,
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
        let parent = directory_of(&out);
        files::create_directory(parent)?;
        let directory = tempfile::Builder::new()
            .prefix(output::UNFINISHED)
            .tempdir_in(parent)
            .map_err(Error::io("create a directory in", parent))?;
        Ok(Self { directory, out })
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
        for path in files::list(directory)? {
            // Libraries write through temporary files, which are private.
            make_public(&path, 0o644)?;
            files::sync(&path)?;
        }
        make_public(directory, 0o755)?;
        files::sync(directory)?;
        fs::rename(directory, &self.out).map_err(Error::io("rename to", &self.out))?;
        // There is nothing left under the temporary name that could be removed.
        let _ = self.directory.keep();
        Ok(files::sync(directory_of(&self.out))?)
    }
}

fn refuse_used(out: &Path) -> Result<()> {
    match files::if_there(files::list(out))? {
        Some(entries) if !entries.is_empty() => Err(Error::file(
            out,
            "is there already and not empty; name a new directory with --out",
        )),
        _ => Ok(()),
    }
}

/// Temporary files and directories are private; results are as readable as any other.
fn make_public(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(Error::io("set the mode of", path))
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
