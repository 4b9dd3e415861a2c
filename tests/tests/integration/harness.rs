//! Provides the two real processes under test: started with flags, read through their files, killed when dropped.

use std::{
    ffi::OsStr,
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Once,
    time::{Duration, Instant},
};

use anyhow::Context;

/// Longest wait for a process to become ready or to end; a debug build on two busy cores is slow.
const DEADLINE: Duration = Duration::from_secs(240);

/// Longest time for all tests of a binary; with it, one that hangs ends as a failure and not as a build that nobody can read.
const LONGEST: Duration = Duration::from_secs(30 * 60);

#[expect(clippy::print_stderr, reason = "the last words of a process")]
fn end_what_hangs() {
    std::thread::sleep(LONGEST);
    eprintln!("after {LONGEST:?} a test still runs; those that did were named after 60 seconds");
    std::process::abort();
}

/// A program, not yet started. It hears of a closed terminal, also where the tests run under `nohup`.
pub fn program(path: impl AsRef<OsStr>) -> Command {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| drop(std::thread::spawn(end_what_hangs)));
    // SAFETY: puts the system's own handling back, in this process and all that it starts.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGHUP, libc::SIG_DFL);
    }
    Command::new(path)
}

/// The address a teacher listens on.
pub enum Listen {
    /// A free port of the loopback interface.
    Loopback,
    /// A unix socket at this path.
    Socket(PathBuf),
}

/// A running `teacher-server serve`.
pub struct Teacher {
    child: Child,
    log: PathBuf,
    address: String,
}

impl Teacher {
    /// Starts `serve` with `flags` and waits until it listens; its log lies in `dir`.
    pub fn serve(dir: &Path, listen: &Listen, flags: &[&str]) -> Self {
        Self::serve_with(dir, listen, flags, &[])
    }

    /// As [`Teacher::serve`], with more environment variables.
    pub fn serve_with(
        dir: &Path,
        listen: &Listen,
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let mut command = program(env!("CARGO_BIN_EXE_teacher-server-under-test"));
        command.envs(variables.iter().copied());
        Self::start(command, dir, listen, flags)
    }

    /// As [`Teacher::serve`], with no more than this many files and connections open at a time.
    pub fn serve_with_descriptors(
        dir: &Path,
        listen: &Listen,
        flags: &[&str],
        descriptors: u32,
    ) -> Self {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
        command.args([
            "-c",
            &script,
            env!("CARGO_BIN_EXE_teacher-server-under-test"),
        ]);
        Self::start(command, dir, listen, flags)
    }

    fn start(mut command: Command, dir: &Path, listen: &Listen, flags: &[&str]) -> Self {
        let port_file = dir.join("port");
        let _ = std::fs::remove_file(&port_file);
        let bind = match listen {
            Listen::Loopback => "127.0.0.1:0".to_owned(),
            Listen::Socket(path) => format!("unix:{}", path.display()),
        };
        let log = dir.join("teacher.log");
        let out = File::create(&log).expect("log file");
        command.args(["serve", "--bind", &bind]).args(flags);
        // What it remembers of its device is the test's, not the home's.
        command.env("XDG_STATE_HOME", dir);
        if matches!(listen, Listen::Loopback) {
            command.arg("--port-file").arg(&port_file);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("log file"))
            .stderr(out)
            .spawn()
            .expect("teacher-server starts");
        let mut teacher = Self {
            child,
            log,
            address: bind,
        };
        match listen {
            Listen::Loopback => {
                let port = teacher.wait_for("its port", || {
                    let text = std::fs::read_to_string(&port_file).ok()?;
                    text.trim().parse::<u16>().ok()
                });
                teacher.address = format!("http://127.0.0.1:{port}");
            }
            // A killed server leaves its file behind, so only an answer counts.
            Listen::Socket(path) => {
                teacher.wait_for("its socket", || UnixStream::connect(path).ok().map(drop))
            }
        }
        teacher
    }

    /// What the trainer takes as `--teacher`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends SIGKILL, as a crash would end it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal and waits for the end.
    pub fn signal(&mut self, signal: libc::c_int) -> ExitStatus {
        send_signal(&self.child, signal);
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(
                start.elapsed() < DEADLINE,
                "the teacher did not end: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The most memory that it has had so far, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).expect("the teacher lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        1024 * kib.expect("a number of kB")
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_for<T>(&mut self, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = ready() {
                return value;
            }
            let ended = self.child.try_wait().expect("wait");
            assert!(
                ended.is_none() && start.elapsed() < DEADLINE,
                "no sign of {what} ({ended:?}): {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Teacher {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A command line of the teacher, not yet run.
pub fn teacher(args: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_teacher-server-under-test"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs the teacher to its end and fails the test with its output where it did not succeed.
pub fn teacher_succeeds(args: &[&str]) -> Output {
    let output = teacher(args).output().expect("teacher-server starts");
    assert!(
        output.status.success(),
        "teacher-server {args:?} failed: {}",
        text(&output)
    );
    output
}

/// Runs the teacher, which must fail without a panic, and returns what it printed.
pub fn teacher_refuses(args: &[&str]) -> String {
    let output = teacher(args).output().expect("teacher-server starts");
    let text = text(&output);
    assert!(
        !output.status.success() && !text.contains("panicked"),
        "teacher-server {args:?} should have refused: {text}"
    );
    text
}

/// A command line of the trainer, not yet run.
pub fn trainer(args: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_student-trainer-under-test"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs the trainer to its end and fails the test with its output where it did not succeed.
pub fn trainer_succeeds(args: &[&str]) -> Output {
    let output = trainer(args).output().expect("student-trainer starts");
    assert!(
        output.status.success(),
        "student-trainer {args:?} failed: {}",
        text(&output)
    );
    output
}

/// Runs the trainer, which must fail without a panic, and returns what it printed.
pub fn trainer_refuses(args: &[&str]) -> String {
    let output = trainer(args).output().expect("student-trainer starts");
    let text = text(&output);
    assert!(
        !output.status.success(),
        "student-trainer {args:?} should have refused: {text}"
    );
    assert!(
        !text.contains("panicked"),
        "student-trainer {args:?} panicked: {text}"
    );
    text
}

/// Both streams of a finished process.
pub fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

/// Waits until something has happened.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < DEADLINE, "no sign of {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the end of a process.
pub fn ending(child: &mut Child) -> anyhow::Result<ExitStatus> {
    let mut status = None;
    wait_until("the end", || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    status.context("it has ended")
}

/// Sends `signal` to a process that this test started.
pub fn send_signal(child: &Child, signal: libc::c_int) {
    // SAFETY: kill(2) takes two integers and has no memory effects here; the child is not reaped yet, so the process
    // id is still its own.
    #[allow(unsafe_code)]
    let result = unsafe { libc::kill(child.id() as libc::pid_t, signal) };
    assert_eq!(result, 0, "signal {signal}");
}
