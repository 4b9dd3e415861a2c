//! Provides the two programs as processes: started with the flags that a person would type, stopped by a signal.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use distill_program::{FileError, Signal, inherited::end_with_this_thread};
use serde_json::Value;

use super::{Programs, Task, path_text};
use crate::{Error, Result};

/// Longest wait for the server to listen; it does so before it loads anything.
const LISTEN_SECONDS_MAX: u64 = 60;
/// Longest wait for the server to finish its batch and end.
const STOP_SECONDS_MAX: u64 = 60;
const POLL: Duration = Duration::from_millis(20);

/// Where the teacher listens.
pub(super) const PORT_FILE: &str = "teacher.port";
/// What it reports.
pub(super) const EVENTS_FILE: &str = "teacher.jsonl";
/// What it says to people.
pub(super) const LOG_FILE: &str = "teacher.log";

/// Process ids of the programs that run now.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks every program that was started to end.
pub fn end_programs() {
    for &id in running().iter() {
        // It may have ended by itself.
        let _ = Signal::Terminate.send(id);
    }
}

/// A program that runs, for as long as this lives.
struct Running(u32);

impl Running {
    fn new(child: &Child) -> Self {
        running().push(child.id());
        Self(child.id())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        running().retain(|&id| id != self.0);
    }
}

/// A running teacher; killed when dropped without [`stop`](Self::stop).
pub(super) struct TeacherServer {
    child: Child,
    _running: Running,
    events: PathBuf,
    /// Where the trainer finds it.
    pub address: String,
}

/// What the teacher did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TeacherDone {
    pub tokens_per_second: f64,
    pub bytes_per_token: f64,
}

impl TeacherServer {
    /// Starts the server on a free port of the loopback and waits until it listens; it loads while others begin.
    pub fn start(programs: &Programs, task: &Task, out: &Path) -> Result<Self> {
        let port_file = out.join(PORT_FILE);
        let events = out.join(EVENTS_FILE);
        let log = out.join(LOG_FILE);
        let file = |path: &Path| File::create(path).map_err(FileError::at("create", path));
        let mut command = Command::new(&programs.teacher_server);
        command
            .args(["serve", "--json", "--bind", "127.0.0.1:0"])
            .args(["--model", &path_text(&task.teacher)])
            .args(["--port-file", &path_text(&port_file)])
            .args(&task.serve)
            .arg("--corpus")
            .args(&task.corpus)
            .stdout(file(&events)?)
            .stderr(file(&log)?);
        let child = end_with_this_thread(&mut command)
            .spawn()
            .map_err(FileError::at("start", &programs.teacher_server))?;
        let mut server = Self {
            _running: Running::new(&child),
            child,
            events,
            address: String::new(),
        };
        let started = Instant::now();
        loop {
            let port = fs::read_to_string(&port_file).unwrap_or_default();
            if !port.trim().is_empty() {
                server.address = format!("http://127.0.0.1:{}", port.trim());
                return Ok(server);
            }
            let ended = server
                .child
                .try_wait()
                .map_err(FileError::at("wait for the writer of", &log))?;
            if ended.is_some() || started.elapsed().as_secs() > LISTEN_SECONDS_MAX {
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Err(Error::Job(format!(
                    "teacher-server did not start: {}",
                    said.trim()
                )));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Asks the server to end, and reads what it did.
    pub fn stop(mut self) -> Result<TeacherDone> {
        let asked = Signal::Terminate.send(self.child.id());
        let stopped = || FileError::at("stop the writer of", &self.events);
        asked.map_err(stopped())?;
        let started = Instant::now();
        while self.child.try_wait().map_err(stopped())?.is_none() {
            if started.elapsed().as_secs() > STOP_SECONDS_MAX {
                break;
            }
            std::thread::sleep(POLL);
        }
        let text = fs::read_to_string(&self.events).map_err(FileError::at("read", &self.events))?;
        let computed = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .rfind(|event| event["event"] == "computed")
            .unwrap_or_default();
        let number = |key: &str| computed[key].as_f64().unwrap_or(0.0);
        Ok(TeacherDone {
            tokens_per_second: number("tokens_per_second"),
            bytes_per_token: number("bytes_per_token"),
        })
    }
}

impl Drop for TeacherServer {
    fn drop(&mut self) {
        // It may have ended already, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end, and reads the JSON object that it prints; it writes its progress where this one does.
pub(super) fn run_json(program: &Path, args: &[String]) -> Result<Value> {
    let stdout = output(program, args)?;
    serde_json::from_slice(&stdout).map_err(|e| {
        let command = command_line(program, args);
        Error::Job(format!("`{command}` printed something else than JSON: {e}"))
    })
}

fn output(program: &Path, args: &[String]) -> Result<Vec<u8>> {
    // In a group of its own: of a terminal's signal it hears once, through this process; a second one would end it before it
    // has told its runs.
    let mut command = Command::new(program);
    let child = end_with_this_thread(command.process_group(0))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(FileError::at("start", program))?;
    let running = Running::new(&child);
    let output = child
        .wait_with_output()
        .map_err(FileError::at("wait for", program))?;
    drop(running);
    if !output.status.success() {
        let command = command_line(program, args);
        return Err(Error::Job(format!("`{command}` failed: {}", output.status)));
    }
    Ok(output.stdout)
}

fn command_line(program: &Path, args: &[String]) -> String {
    format!("{} {}", program.display(), args.join(" "))
}
