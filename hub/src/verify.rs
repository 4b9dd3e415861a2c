//! Provides the check of a blob against its etag: the SHA-256 of a large file, or git's SHA-1 of a small one.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use distill_program::FileError;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::{Error, Result, name::is_lower_hex};

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// What an etag says about the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// SHA-256 of the bytes (files in LFS or Xet storage).
    Sha256,
    /// Git's object id of the bytes (files in the repository itself).
    GitBlob,
    /// Nothing; some mirrors make their own etags.
    Nothing,
}

impl Promise {
    pub fn of(etag: &str) -> Self {
        match etag.len() {
            64 if is_lower_hex(etag) => Self::Sha256,
            40 if is_lower_hex(etag) => Self::GitBlob,
            _ => Self::Nothing,
        }
    }
}

/// The digest of the file's bytes as they are on disk, where it is not what `etag` promises; `None` where all is well.
///
/// The file is read again instead of hashed on its way in: what counts is what later runs will read, and an interrupted
/// transfer needs its beginning read anyhow.
pub(crate) fn mismatch(
    path: &Path,
    etag: &str,
    stopped: &dyn Fn() -> bool,
) -> Result<Option<String>> {
    let file = File::open(path).map_err(FileError::at("read", path))?;
    let found = match Promise::of(etag) {
        Promise::Nothing => return Ok(None),
        Promise::Sha256 => digest(file, Sha256::new(), path, stopped)?,
        Promise::GitBlob => {
            let bytes = file.metadata().map_err(FileError::at("read", path))?.len();
            digest(file, git_header(bytes), path, stopped)?
        }
    };
    Ok((found != etag).then_some(found))
}

/// What git hashes before so many bytes of a blob.
pub(crate) fn git_header(bytes: u64) -> Sha1 {
    Sha1::new().chain_update(format!("blob {bytes}\0"))
}

/// The digest of all that is read, on top of what `digest` has seen; `path` is for messages.
pub(crate) fn digest<D: Digest>(
    mut file: impl Read,
    mut digest: D,
    path: &Path,
    stopped: &dyn Fn() -> bool,
) -> Result<String> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        if stopped() {
            return Err(Error::Stopped);
        }
        let count = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(FileError::at("read", path)(error).into()),
        };
        digest.update(buffer.get(..count).unwrap_or_default());
    }
    Ok(hex::encode(digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_sha256sum() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, "hello\n").unwrap();
        // `git hash-object f` and `sha256sum f`.
        for etag in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            assert_eq!(mismatch(&path, etag, &|| false).unwrap(), None);
            let other = etag.replace('c', "d");
            assert_eq!(
                mismatch(&path, &other, &|| false).unwrap().as_deref(),
                Some(etag)
            );
        }
        assert_eq!(mismatch(&path, "\"some-etag\"", &|| false).unwrap(), None);
    }
}
