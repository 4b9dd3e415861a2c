//! Provides a process's turn on a device that the teacher shares: when it begins, when it is over, and what the next one goes on from.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Instant,
};

use candle_core::Device;
use distill_model::free_and_total;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::watch};

use super::warnings::Warnings;
use crate::{
    Error, Result,
    checkpoint::{Content, Handed, RunState, tensor_bytes},
    shutdown::Shutdown,
};

/// Of the environment: the files that the processes of a run share. It makes a process one of them.
pub(super) const VARIABLE: &str = "OT_DISTILL_TURN";
/// Exit status of a process that has handed everything over, to be started again.
pub(super) const HANDED_OVER: u8 = 75;
/// Said once the frames of a step are there.
pub(super) const READY: u8 = b'r';

/// Files that are there as long as one of the processes is.
#[derive(Serialize, Deserialize)]
pub(super) struct SharedFiles {
    /// Where the run is between two turns, if memory has room for it.
    pub memory: PathBuf,
    /// And if it has not.
    pub disk: PathBuf,
    /// What the teacher says of held-out text.
    pub answers: PathBuf,
}

/// What a process is told, each as a line.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// The device is its own.
    Granted(Option<Leaving>),
    /// The device is asked for.
    GiveBack,
    /// Somebody wants the run to stop.
    Stop,
}

/// How the device was left before.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Leaving {
    /// From being asked to having left; none where nobody asked.
    pub release_seconds: Option<f64>,
    /// From then to the grant.
    pub waited_seconds: f64,
}

/// The device, from now on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub leaving: Option<Leaving>,
    pub at: Instant,
}

#[derive(Default)]
struct Told {
    grant: Option<Grant>,
    over_since: Option<Instant>,
}

/// This process's turn.
pub struct Turn {
    files: SharedFiles,
    channel: UnixStream,
    told: watch::Receiver<Told>,
}

/// Whether this process is one of several that a run goes through.
pub fn is_turn() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

impl Turn {
    /// The turn of this process, where it is one of several that a run goes through. What started it speaks by standard input;
    /// when that ends, so does this process, at once.
    ///
    /// # Errors
    /// It was not started by a run.
    pub fn of_this_process(shutdown: &Shutdown) -> Result<Option<Self>> {
        let Some(files) = std::env::var_os(VARIABLE) else {
            return Ok(None);
        };
        let strange =
            || Error::Config(format!("{VARIABLE} is for the program's own use; unset it"));
        let files = files.into_string().map_err(|_| strange())?;
        let files = serde_json::from_str(&files).map_err(|_| strange())?;
        let channel = io::stdin().as_fd().try_clone_to_owned();
        let channel = UnixStream::from(channel.map_err(|_| strange())?);
        let words = channel.try_clone().map_err(|_| strange())?;
        let (sender, told) = watch::channel(Told::default());
        let shutdown = shutdown.clone();
        let thread = std::thread::Builder::new().name("turn".to_owned());
        let listening = thread.spawn(move || listen(words, &sender, &shutdown));
        listening.map_err(Error::io("start a thread for", Path::new("standard input")))?;
        // What lists processes shows this name, and not that of the link that it was started by.
        let _ = fs::write("/proc/self/comm", env!("CARGO_PKG_NAME"));
        Ok(Some(Self {
            files,
            channel,
            told,
        }))
    }

    /// What the process before has handed over; none in the first turn.
    ///
    /// # Errors
    /// As [`Handed::take`].
    pub(super) fn handed(&self) -> Result<Option<Handed>> {
        match Handed::take(&self.files.memory)? {
            None => Handed::take(&self.files.disk),
            handed => Ok(handed),
        }
    }

    /// Where the teacher's answers are.
    ///
    /// # Errors
    /// They cannot be opened.
    pub(super) fn answers(&self) -> Result<File> {
        let path = &self.files.answers;
        File::open(path).map_err(Error::io("open", path))
    }

    /// Asks for the device and waits for it; `None` where the run is to stop before.
    ///
    /// # Errors
    /// Nobody listens.
    pub(super) fn wait(&self, runtime: &Handle, shutdown: &Shutdown) -> Result<Option<Grant>> {
        let said = (&self.channel).write_all(&[READY]);
        said.map_err(Error::io("write to", Path::new("standard input")))?;
        let mut told = self.told.clone();
        Ok(runtime.block_on(async {
            tokio::select! {
                told = told.wait_for(|told| told.grant.is_some()) => told.ok().and_then(|told| told.grant),
                () = shutdown.requested() => None,
            }
        }))
    }

    /// Since when the device is asked for.
    pub(super) fn over_since(&self) -> Option<Instant> {
        self.told.borrow().over_since
    }

    /// Returns once the device is asked for.
    pub(super) async fn over(&self) {
        let mut told = self.told.clone();
        // Its other end lives as long as the process.
        let _ = told.wait_for(|told| told.over_since.is_some()).await;
    }

    /// Hands the run to the next process.
    ///
    /// # Errors
    /// As [`Handed::write`].
    pub(super) fn hand_over(
        &self,
        state: &RunState,
        warnings: &Warnings,
        files: &[(&str, Content)],
    ) -> Result<()> {
        let memory = free_and_total(&Device::Cpu)?;
        // Twice: whoever reads it has it twice for a moment.
        let fits = memory.is_some_and(|memory| memory.free_bytes / 2 > tensor_bytes(files));
        let path = if fits {
            &self.files.memory
        } else {
            &self.files.disk
        };
        let warnings = serde_json::to_string(warnings).map_err(|e| Error::file(path, e))?;
        Handed::write(path, state, &warnings, files)
    }
}

/// Hears what started this process, for as long as both live.
fn listen(words: UnixStream, told: &watch::Sender<Told>, shutdown: &Shutdown) {
    for line in BufReader::new(words).lines() {
        let word = line.map(|line| serde_json::from_str(&line));
        match word {
            Ok(Ok(Word::Granted(leaving))) => told.send_modify(|told| {
                let at = Instant::now();
                told.grant = Some(Grant { leaving, at });
            }),
            Ok(Ok(Word::GiveBack)) => told.send_modify(|told| {
                told.over_since.get_or_insert_with(Instant::now);
            }),
            Ok(Ok(Word::Stop)) => shutdown.request(),
            _ => break,
        }
    }
    // Whoever has the lease and the terminal is gone: the device is another's now.
    end_at_once();
}

/// Without anything that a driver does at a process's end in order, which may wait for what the device still computes.
#[expect(unsafe_code, reason = "there is no safe interface")]
fn end_at_once() -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(1) }
}

/// What a change of hands took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handover {
    /// From being asked to having left; none where nobody asked.
    pub release_seconds: Option<f64>,
    /// From then to being back.
    pub acquire_seconds: f64,
    /// Of these, from the grant on: the student is read and goes on from what it was.
    pub load_seconds: f64,
}

impl Handover {
    /// What it took to get the device by `grant` and to load the student; none in the first turn.
    pub fn since(grant: Grant) -> Option<Self> {
        let leaving = grant.leaving?;
        let load_seconds = grant.at.elapsed().as_secs_f64();
        let acquire_seconds = leaving.waited_seconds + load_seconds;
        tracing::info!(
            "the student is back after {acquire_seconds:.1} s, {load_seconds:.1} s of them to load"
        );
        Some(Self {
            release_seconds: leaving.release_seconds,
            acquire_seconds,
            load_seconds,
        })
    }
}
