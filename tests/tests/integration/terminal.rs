//! Provides a terminal for a program under test: one that can be read, and closed.

use std::{
    ffi::CStr,
    fs::File,
    io::{Error, ErrorKind, Read, Result},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Bytes of a device's name, at most.
const NAME_BYTES_MAX: usize = 256;

/// A pseudo-terminal whose screen is read all the time.
pub struct Terminal {
    is_closed: Arc<AtomicBool>,
    is_written: Arc<AtomicBool>,
    screen: JoinHandle<Vec<u8>>,
    device: OwnedFd,
    pub path: PathBuf,
}

impl Terminal {
    pub fn open() -> Result<Self> {
        let (mut reader, mut device) = (0, 0);
        let mut name = [0; NAME_BYTES_MAX];
        // SAFETY: all three live through the call and the name has room; the rest may be null. Both numbers are new and
        // owned by nobody else.
        #[allow(unsafe_code)]
        let (reader, device, path) = unsafe {
            let none = std::ptr::null_mut();
            let (name, none_too) = (name.as_mut_ptr(), none);
            if libc::openpty(&mut reader, &mut device, name, none, none_too.cast()) != 0 {
                return Err(Error::last_os_error());
            }
            // A read that waits would keep the terminal open.
            libc::fcntl(reader, libc::F_SETFL, libc::O_NONBLOCK);
            // Programs under test must not hold the other end.
            libc::fcntl(reader, libc::F_SETFD, libc::FD_CLOEXEC);
            let path = CStr::from_ptr(name).to_string_lossy().into_owned();
            (
                File::from_raw_fd(reader),
                OwnedFd::from_raw_fd(device),
                path,
            )
        };
        let (is_closed, is_written) = (Arc::<AtomicBool>::default(), Arc::default());
        let screen = std::thread::spawn({
            let (is_closed, is_written) = (is_closed.clone(), Arc::clone(&is_written));
            move || read_until(reader, &is_closed, &is_written)
        });
        Ok(Self {
            is_closed,
            is_written,
            screen,
            device,
            path: path.into(),
        })
    }

    /// Starts a program on it, as a shell would.
    pub fn start(&self, command: &mut Command) -> Result<Child> {
        let end = || self.device.try_clone();
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        // SAFETY: both calls are allowed between fork and exec, and take numbers only.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                    return Err(Error::last_os_error());
                }
                Ok(())
            });
        }
        command.spawn()
    }

    /// Whether there is something on the screen.
    pub fn is_written(&self) -> bool {
        self.is_written.load(Ordering::Relaxed)
    }

    /// Closes it and gives what was on the screen.
    pub fn close(self) -> Vec<u8> {
        self.is_closed.store(true, Ordering::Relaxed);
        self.screen.join().unwrap_or_default()
    }
}

fn read_until(mut reader: File, is_closed: &AtomicBool, is_written: &AtomicBool) -> Vec<u8> {
    let (mut screen, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        match reader.read(&mut bytes) {
            Ok(count @ 1..) => {
                screen.extend_from_slice(&bytes[..count]);
                is_written.store(true, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if is_closed.load(Ordering::Relaxed) {
                    return screen;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            // Nobody has the other end.
            _ => return screen,
        }
    }
}
