//! Provides the directory of a cache: a new one, an empty one, or one that holds a cache or what a failed start left of it.

use std::{ffi::OsStr, path::Path};

use distill_program::files;

use super::{
    HEADER, LOCK, MEMBERS, SEGMENTS,
    contents::SHARDS,
    matrices::{BASIS, PROJECTION, VOCABULARY},
    partial::PARTIAL,
    storage::{DAMAGED, TEMPORARY},
};
use crate::{Error, Result};

/// All that a cache puts into its directory.
const OWN: [&str; 11] = [
    HEADER, SEGMENTS, MEMBERS, SHARDS, LOCK, BASIS, PROJECTION, VOCABULARY, PARTIAL, DAMAGED,
    TEMPORARY,
];
/// What the root of a disk holds.
const OF_A_DISK: &str = "lost+found";
/// Of what a shell writes beside a capture that it starts.
const SHELL_LOG: &str = "log";

/// Whether a cache may be in `path`; looked at before a model is read, and again before anything is written.
///
/// # Errors
/// `Cache` where it holds somebody's other files and no cache; `Io`.
pub(super) fn check(path: &Path) -> Result<()> {
    if path.exists() && !path.join(HEADER).exists() {
        for entry in files::list(path)? {
            let name = entry.file_name().unwrap_or_default();
            let is_log = entry.extension() == Some(OsStr::new(SHELL_LOG));
            let is_known = OWN.iter().any(|own| name == *own) || name == OF_A_DISK;
            if !is_known && !is_log {
                return Err(Error::cache(
                    path,
                    format!(
                        "there is no cache here, but {}, which none wrote; name a new or an empty directory",
                        name.display()
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Makes the directory, unless it is there.
///
/// # Errors
/// As [`check`].
pub(super) fn make(path: &Path) -> Result<()> {
    check(path)?;
    Ok(files::create_directory(path)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn somebodys_other_files_are_refused_and_what_a_failed_start_left_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        make(&path).unwrap();
        for left in [LOCK, TEMPORARY, BASIS, OF_A_DISK, "capture.log"] {
            fs::create_dir_all(path.join(left)).unwrap();
        }
        make(&path).unwrap();
        fs::write(path.join("thesis.tex"), "").unwrap();
        let message = make(&path).unwrap_err().to_string();
        assert!(
            message.contains("thesis.tex") && message.contains("empty directory"),
            "{message}"
        );
        // Beside a cache it is nobody's business.
        fs::write(path.join(HEADER), "").unwrap();
        make(&path).unwrap();
    }
}
