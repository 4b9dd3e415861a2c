/*! Provides the reading of files that someone named (settings, tokens, certificates, a model's JSON) without trust in them.

```text
 path ──> open: a regular file, or an error that says what it is ──> read: at most so many bytes ──> read_text: UTF-8
```

A pipe that nobody writes to would block its reader for ever, and `/dev/zero` fills memory. All readers of small files go
through here. Errors are plain [`io::Error`]s that leave the path to the caller, whose messages begin with it.
*/
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    fs::{self, File, FileType, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;

/// Opens a regular file, or a link to one, for reading.
///
/// # Errors
/// What the system says; `InvalidInput` naming what is there instead of a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Asked before as well: opening some devices does something, such as winding a tape.
    refuse_special(fs::metadata(path)?.file_type())?;
    let file = OpenOptions::new()
        .read(true)
        // What has become a pipe in between must not block; a regular file is read all the same.
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    refuse_special(file.metadata()?.file_type())?;
    Ok(file)
}

/// Opens a regular file for reading and writing as it is, and makes one where there is nothing.
///
/// # Errors
/// As [`open`].
pub fn open_or_create(path: &Path) -> io::Result<File> {
    match fs::metadata(path) {
        Ok(found) => refuse_special(found.file_type())?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    refuse_special(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads a whole regular file.
///
/// # Errors
/// As [`open`]; `FileTooLarge` where it has more than `bytes_max` bytes.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let length = file.metadata()?.len();
    if length > bytes_max {
        return Err(too_large(bytes_max));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    // It may grow while it is read, and files of /proc have no length.
    file.by_ref().take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(too_large(bytes_max));
    }
    Ok(bytes)
}

/// Reads a whole regular file as text.
///
/// # Errors
/// As [`read`]; `InvalidData` where it is not UTF-8.
pub fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(read(path, bytes_max)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        io::Error::new(
            ErrorKind::InvalidData,
            format!("not UTF-8 from byte {at} on"),
        )
    })
}

fn refuse_special(kind: FileType) -> io::Result<()> {
    if kind.is_file() {
        return Ok(());
    }
    let found = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a named pipe (FIFO)"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "something else"
    };
    let reason = format!("it is {found}, where a regular file is expected");
    Err(io::Error::new(ErrorKind::InvalidInput, reason))
}

fn too_large(bytes_max: u64) -> io::Error {
    let reason = format!("it has more than the {bytes_max} bytes that are read of such a file");
    io::Error::new(ErrorKind::FileTooLarge, reason)
}

#[cfg(test)]
mod tests;
