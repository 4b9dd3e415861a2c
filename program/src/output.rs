/*! Provides the one way in which programs write the files that they are told to write.

| what is at the path        | what happens                                                           |
|----------------------------|------------------------------------------------------------------------|
| nothing, or a regular file | a temporary file beside it, synced and renamed: old or new, never a mix |
| a symbolic link            | the same for what it points to; the link stays                         |
| `/dev/stdout`, `/dev/fd/N` | written through that descriptor, from where it stands                  |
| a FIFO                     | written into; a reader is waited for, for a while                      |
| a device                   | written into                                                           |
*/

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    os::{
        fd::{BorrowedFd, RawFd},
        unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    FileError, console,
    files::{directory_of, sync},
};

/// How long a FIFO may have no reader, or a reader that does not read.
const READER_PATIENCE: Duration = Duration::from_secs(30);
/// How long such a wait goes without a word.
const WORD_AFTER: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Links that lead to links; the system's own limit.
const LINKS_MAX: usize = 40;
/// Results are as readable as any other file; temporary files are private.
const MODE: u32 = 0o644;
const PRIVATE_MODE: u32 = 0o600;

/// Writes `bytes` to `path`, as the table above says.
///
/// # Errors
/// What the system refused; a directory at `path`; a FIFO that nobody reads.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_patiently(path, bytes, MODE, READER_PATIENCE)
}

/// As [`write()`], for its owner's eyes only.
///
/// # Errors
/// As [`write()`].
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_patiently(path, bytes, PRIVATE_MODE, READER_PATIENCE)
}

/// `mode` is that of a file which is not there yet.
fn write_patiently(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    patience: Duration,
) -> Result<(), FileError> {
    let refuse = || FileError::at("write", path);
    match destination(path).map_err(refuse())? {
        Destination::Descriptor(descriptor) => write_through(descriptor, bytes).map_err(refuse()),
        Destination::File(target) => match fs::metadata(&target) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                replace(&target, bytes, Permissions::from_mode(mode))
            }
            Err(error) => Err(refuse()(error)),
            Ok(found) if found.is_file() => replace(&target, bytes, found.permissions()),
            Ok(found) if found.is_dir() => Err(refuse()(ErrorKind::IsADirectory.into())),
            Ok(_) => write_into(&target, bytes, patience).map_err(refuse()),
        },
    }
}

/// The path that `path` leads to, which is no link; there may be nothing yet.
///
/// # Errors
/// Links that lead to one another.
pub fn followed(path: &Path) -> io::Result<PathBuf> {
    match destination(path)? {
        Destination::File(target) => Ok(target),
        Destination::Descriptor(_) => Ok(path.to_owned()),
    }
}

/// Gives a result the mode that other files have.
///
/// # Errors
/// The system refuses.
pub fn readable_by_all(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(MODE))
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
enum Destination {
    /// To a descriptor of this process.
    Descriptor(RawFd),
    /// To this path, which is no link; there may be nothing yet.
    File(PathBuf),
}

/// Follows links one by one, since the last of them may point to what is still to be written.
fn destination(path: &Path) -> io::Result<Destination> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        if let Some(descriptor) = descriptor(&path) {
            return Ok(Destination::Descriptor(descriptor));
        }
        match fs::read_link(&path) {
            Ok(target) => path = directory_of(&path).join(target),
            // What is no link, or is not there. Any other trouble shows when it is written.
            Err(_) => return Ok(Destination::File(path)),
        }
    }
    Err(io::Error::other(format!(
        "more than {LINKS_MAX} symbolic links lead to one another"
    )))
}

/// The number in `/proc/self/fd/N`, by whatever name: there is a link, but what it stands for may be half written.
fn descriptor(path: &Path) -> Option<RawFd> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    let own = format!("/proc/{}/fd", std::process::id());
    let is_own = fs::canonicalize(path.parent()?).ok()? == Path::new(&own);
    (is_own && fs::symlink_metadata(path).is_ok()).then_some(number)
}

#[expect(unsafe_code, reason = "a number becomes a descriptor")]
fn write_through(descriptor: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the system has just listed it as open, and nothing here closes what it was started with; it is only copied.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    File::from(borrowed.try_clone_to_owned()?).write_all(bytes)
}

/// How the name begins of a file that is not whole yet; one that stays was left by a crash.
pub const UNFINISHED: &str = ".unfinished-";

/// Writes a file through a temporary one beside it: write, sync, rename, sync of the directory.
fn replace(path: &Path, bytes: &[u8], mode: Permissions) -> Result<(), FileError> {
    let refuse = |action| FileError::at(action, path);
    let directory = directory_of(path);
    let mut temporary = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(directory)
        .map_err(FileError::at("create a file in", directory))?;
    temporary.write_all(bytes).map_err(refuse("write"))?;
    let file = temporary.as_file();
    file.set_permissions(mode)
        .map_err(refuse("set the mode of"))?;
    file.sync_all().map_err(refuse("sync"))?;
    temporary
        .persist(path)
        .map_err(|error| refuse("rename to")(error.error))?;
    sync(directory)
}

/// Writes into what is no file; whoever has to take the bytes is waited for, but not for ever.
fn write_into(path: &Path, bytes: &[u8], patience: Duration) -> io::Result<()> {
    let mut waiting = Waiting::new(path, patience);
    let mut file = loop {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        match options.open(path) {
            Err(error) if is_without_reader(path, &error) => waiting.wait()?,
            opened => break opened?,
        }
    };
    let mut left = bytes;
    while !left.is_empty() {
        match file.write(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                left = left.get(written..).unwrap_or_default();
                waiting.go_on();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => waiting.wait()?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_without_reader(path: &Path, error: &io::Error) -> bool {
    let kind = fs::metadata(path).map(|found| found.file_type());
    error.raw_os_error() == Some(libc::ENXIO) && kind.is_ok_and(|kind| kind.is_fifo())
}

/// A wait that people hear of where it is long, and that ends.
struct Waiting<'a> {
    path: &'a Path,
    patience: Duration,
    since: Option<Instant>,
    is_told: bool,
}

impl<'a> Waiting<'a> {
    fn new(path: &'a Path, patience: Duration) -> Self {
        Self {
            path,
            patience,
            since: None,
            is_told: false,
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        let seconds = self.patience.as_secs();
        if waited >= self.patience {
            return Err(io::Error::other(format!(
                "nobody has read it for {seconds} s"
            )));
        }
        if waited >= WORD_AFTER && !self.is_told {
            self.is_told = true;
            let path = self.path.display();
            console::say(format_args!("{path}: waiting {seconds} s for a reader"));
        }
        std::thread::sleep(POLL_INTERVAL);
        Ok(())
    }

    /// Somebody reads.
    fn go_on(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
pub(crate) mod tests;
