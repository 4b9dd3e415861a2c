//! Provides read-only memory maps of weight files, the one place where this crate trusts the file system.

use crate::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// Maps `path` for reading; empty files are refused because they hold no header.
///
/// # Errors
/// [`Error::Io`] when the file cannot be opened or mapped or is no regular file, [`Error::Malformed`] when it is empty.
pub(super) fn map_file(path: &Path) -> Result<Mmap> {
    let file = distill_files::open(path).map_err(|e| Error::io(path, e))?;
    let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
    if metadata.len() == 0 {
        return Err(Error::malformed(
            path,
            "file",
            "the file is empty; download it again",
        ));
    }
    map(&file).map_err(|e| Error::io(path, e))
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is private and read-only, and nothing in this crate writes to weight files. The assumption is that
    // no other process changes or truncates a checkpoint while it is in use; if one does, values change under us or the
    // process ends with SIGBUS, as with every mmapping reader of safetensors. Contents are validated as untrusted bytes
    // and read byte-wise, so no bit pattern is undefined.
    unsafe { Mmap::map(file) }
}
