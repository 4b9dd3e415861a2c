/*! Provides what programs do to files that someone named, without trust in them and with the path in every error.

```text
 path ──> open: a regular file, or an error that says what it is ──> read: at most so many bytes ──> read_text: UTF-8
 names ─> list, create_directory, remove, sync
```

A pipe that nobody writes to would block its reader for ever, and `/dev/zero` fills memory. All readers of small files go
through here.
*/
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    fs::{self, File, FileType, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::FileError;

/// What the functions here give.
pub type Result<T> = std::result::Result<T, FileError>;

/// Opens a regular file, or a link to one, for reading.
///
/// # Errors
/// What the system says; `InvalidInput` naming what is there instead of a regular file.
pub fn open(path: &Path) -> Result<File> {
    open_regular(path, OpenOptions::new().read(true)).map_err(FileError::at("read", path))
}

/// Opens a regular file for reading and writing as it is, and makes one where there is nothing.
///
/// # Errors
/// As [`open`].
pub fn open_or_create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    open_regular(path, &mut options).map_err(FileError::at("open", path))
}

fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Asked before as well: opening some devices does something, such as winding a tape.
    match fs::metadata(path) {
        Ok(found) => refuse_special(found.file_type())?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // What has become a pipe in between must not block; a regular file is read all the same.
    let file = options.custom_flags(libc::O_NONBLOCK).open(path)?;
    refuse_special(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads a whole regular file.
///
/// # Errors
/// As [`open`]; `FileTooLarge` where it has more than `bytes_max` bytes.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    read_whole(open(path)?, bytes_max).map_err(FileError::at("read", path))
}

fn read_whole(file: File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    if length > bytes_max {
        return Err(too_large(bytes_max));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    // It may grow while it is read, and files of /proc have no length.
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(too_large(bytes_max));
    }
    Ok(bytes)
}

/// Reads a whole regular file as text.
///
/// # Errors
/// As [`read`]; `InvalidData` where it is not UTF-8.
pub fn read_text(path: &Path, bytes_max: u64) -> Result<String> {
    String::from_utf8(read(path, bytes_max)?).map_err(|e| {
        let reason = format!("not UTF-8 from byte {} on", e.utf8_error().valid_up_to());
        FileError::at("read", path)(io::Error::new(ErrorKind::InvalidData, reason))
    })
}

/// What is there, where it is there: for the errors of this module.
///
/// # Errors
/// All but that there is nothing at the path.
pub fn if_there<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Err(error) if error.is_missing() => Ok(None),
        found => found.map(Some),
    }
}

/// The paths of what is in a directory, sorted.
///
/// # Errors
/// What the system says.
pub fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).and_then(|entries| {
        let paths = entries.map(|entry| Ok(entry?.path()));
        paths.collect::<io::Result<Vec<PathBuf>>>()
    });
    let mut paths = entries.map_err(FileError::at("read the directory", directory))?;
    paths.sort();
    Ok(paths)
}

/// Makes a directory and those above it, where they are missing.
///
/// # Errors
/// What the system says.
pub fn create_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(FileError::at("create", path))
}

/// Removes a file, where it is there.
///
/// # Errors
/// What the system says.
pub fn remove(path: &Path) -> Result<()> {
    if_there(fs::remove_file(path).map_err(FileError::at("remove", path))).map(drop)
}

/// Returns once a file's content, or the names in a directory, would survive a loss of power.
///
/// # Errors
/// What the system says.
pub fn sync(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(FileError::at("sync", path))
}

/// The directory that a path's last name is in; of a bare file name it is the current one.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
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
#[path = "files_tests.rs"]
mod tests;
