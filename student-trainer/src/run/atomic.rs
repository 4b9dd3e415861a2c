//! Provides files that are either the old or the new version after a crash, never a mix.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use crate::{Error, Result};

/// Writes a file through a temporary one beside it: write, sync, rename, sync of the directory.
///
/// # Errors
/// The path and what the system said; the old file is untouched then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    // A bare file name has an empty parent.
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::NamedTempFile::new_in(directory)
        .map_err(Error::io("create a file in", directory))?;
    temporary
        .write_all(bytes)
        .map_err(Error::io("write", path))?;
    readable_by_all(temporary.as_file()).map_err(Error::io("set the mode of", path))?;
    temporary
        .as_file()
        .sync_all()
        .map_err(Error::io("sync", path))?;
    temporary
        .persist(path)
        .map_err(|e| Error::io("rename to", path)(e.error))?;
    let directory_handle = File::open(directory).map_err(Error::io("open", directory))?;
    directory_handle
        .sync_all()
        .map_err(Error::io("sync", directory))
}

/// Temporary files are private; results are as readable as any other file.
pub(crate) fn readable_by_all(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for content in ["long content", "short"] {
            write_atomically(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let missing = dir.path().join("no/file");
        let message = write_atomically(&missing, b"").unwrap_err().to_string();
        assert!(message.contains("no"), "{message}");
    }
}
