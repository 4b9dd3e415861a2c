//! Provides what a process shares with those that it starts: files without a name, and its end. Whatever way it ends, nothing is left.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::{FdFlags, fcntl_setfd},
    process::{Signal, set_parent_process_death_signal},
};

/// A file that this process and those that it starts find at the same path.
#[derive(Debug)]
pub struct Inherited(File);

impl Inherited {
    /// An empty one in memory.
    ///
    /// # Errors
    /// The system refuses.
    pub fn in_memory() -> io::Result<Self> {
        // Without a flag it is inherited.
        Ok(Self(memfd_create("run", MemfdFlags::empty())?.into()))
    }

    /// An empty one on the disk of `directory`.
    ///
    /// # Errors
    /// The system refuses.
    pub fn on_disk(directory: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(directory)?;
        share(&file)?;
        Ok(Self(file))
    }

    /// Opens it to be read and written.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(&self) -> io::Result<File> {
        File::options().read(true).write(true).open(self.path())
    }

    /// Where it can be opened, for as long as one of these processes lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// Asks what `command` starts to end, by SIGTERM, when the thread that starts it ends: also where it is killed and can ask nobody.
#[expect(unsafe_code, reason = "it is for the new process to say")]
pub fn end_with_this_thread(command: &mut Command) -> &mut Command {
    // SAFETY: what runs between fork and exec is one system call, and allocates nothing.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?)) }
}

/// Leaves a file open in the processes that this one starts from now on.
///
/// # Errors
/// The system refuses.
pub fn share(file: impl AsFd) -> io::Result<()> {
    Ok(fcntl_setfd(file, FdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[test]
    fn a_started_process_finds_what_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            Inherited::in_memory().unwrap(),
            Inherited::on_disk(dir.path()).unwrap(),
        ] {
            fs::write(file.path(), "asked").unwrap();
            let script = "cat \"$0\" && printf answered > \"$0\"";
            let path = file.path();
            let output = Command::new("sh").args(["-c", script]).arg(&path).output();
            assert_eq!(output.unwrap().stdout, b"asked");
            assert_eq!(fs::read(path).unwrap(), b"answered");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
