//! Provides the moment at which a finished directory appears: whole and on disk, or not at all.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::Path,
};

use tempfile::TempDir;

use crate::{Error, Result, run::readable_by_all};

/// An empty directory may be named as the result; whatever else is there stays as it is.
///
/// # Errors
/// A directory with something in it, or something that is no directory.
pub(super) fn refuse_used(out: &Path) -> Result<()> {
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

/// Makes `staging`, a directory in `parent`, to `out`: a crash leaves a whole directory or none of that name.
///
/// # Errors
/// What the file system refused; `staging` is removed then.
pub(super) fn publish(staging: TempDir, parent: &Path, out: &Path) -> Result<()> {
    let directory = staging.path();
    let entries = fs::read_dir(directory).map_err(Error::io("read the directory", directory))?;
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
    fs::rename(directory, out).map_err(Error::io("rename to", out))?;
    // There is nothing left under the temporary name that could be removed.
    let _ = staging.keep();
    sync(parent)
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
            let staging = tempfile::tempdir_in(parent.path()).unwrap();
            fs::write(staging.path().join("a"), "whole").unwrap();
            staging
        };
        refuse_used(&out).unwrap();
        // An empty directory is taken over.
        fs::create_dir(&out).unwrap();
        refuse_used(&out).unwrap();
        publish(staged(), parent.path(), &out).unwrap();
        assert_eq!(fs::read_to_string(out.join("a")).unwrap(), "whole");
        let message = refuse_used(&out).unwrap_err().to_string();
        assert!(message.contains("not empty"), "{message}");
        assert!(refuse_used(&out.join("a")).is_err());
        // What cannot appear leaves nothing behind.
        assert!(publish(staged(), parent.path(), &out).is_err());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
