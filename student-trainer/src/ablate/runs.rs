//! Provides the runs of an ablation: each a process of `train` in a directory of its own, gone on with where it stopped.

use std::{
    collections::BTreeMap,
    fs::File,
    num::NonZeroUsize,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use distill_program::{Signal, inherited::end_with_this_thread};
use toml::{Table, Value};

use super::arms::{slug, write_settings};
use crate::{
    Error, Result,
    config::FILE_BYTES_MAX,
    files,
    report::Run,
    run::{CONFIG_FILE, PLANS_FILE, SUMMARY_FILE, who_trains_in},
    shutdown::Shutdown,
    train::{PROGRAM, Plans},
};

/// Bytes of a run's plans: three of 128 positions squared take a twentieth of it.
const PLANS_BYTES_MAX: u64 = 1 << 24;
/// Time between two looks at a run.
const POLL: Duration = Duration::from_millis(50);
/// Lines of a failed run's log that are shown.
const LOG_LINES_SHOWN: usize = 5;

/// One run to do: settings of `train` with a place.
pub(super) struct Planned {
    /// For messages.
    pub name: String,
    pub directory: PathBuf,
    pub settings: Table,
}

impl Planned {
    /// `name` with `seed` below `parent`.
    pub fn new(parent: &Path, name: &str, seed: u64, settings: &Table) -> Result<Self> {
        let seed_value = i64::try_from(seed)
            .map_err(|_| Error::Config(format!("seeds: {seed} is above {}", i64::MAX)))?;
        let directory = parent.join(format!("{}-{seed}", slug(name)));
        let mut settings = settings.clone();
        settings.insert("seed".to_owned(), Value::Integer(seed_value));
        let out = directory.display().to_string();
        settings.insert("out".to_owned(), Value::String(out));
        Ok(Self {
            name: format!("{name}, seed {seed}"),
            directory,
            settings,
        })
    }

    /// Whether there is nothing left to do.
    ///
    /// # Errors
    /// A run of other settings is there.
    pub fn is_done(&self) -> Result<bool> {
        let config = self.directory.join(CONFIG_FILE);
        if !config.is_file() {
            return Ok(false);
        }
        let there: Table = files::read_toml(&config, FILE_BYTES_MAX)?;
        let keys = there.keys().chain(self.settings.keys());
        let other = keys
            .filter(|key| key.as_str() != "out")
            .find(|&key| there.get(key) != self.settings.get(key));
        match other {
            Some(key) => Err(Error::file(
                &self.directory,
                format!(
                    "is a run with another `{key}` than the arm has now; move it away, or name another --out"
                ),
            )),
            None => Ok(self.directory.join(SUMMARY_FILE).is_file()),
        }
    }

    /// Trains, or goes on; `None` where someone asked to stop before the run was over.
    ///
    /// # Errors
    /// The run failed: with the end of its log.
    pub fn train(&self, is_to_stop: &dyn Fn() -> bool) -> Result<Option<Run>> {
        if !self.is_done()? {
            self.wait_for_who_trains(is_to_stop)?;
        }
        if !self.is_done()? {
            if is_to_stop() {
                return Ok(None);
            }
            let status = self.start(is_to_stop)?;
            if is_to_stop() && !self.is_done()? {
                return Ok(None);
            }
            if !status.success() {
                return Err(self.failure(status));
            }
        }
        Run::read(&self.directory).map(Some)
    }

    /// What it left of its plans; none where its records have no links, or a release before wrote it.
    ///
    /// # Errors
    /// A file with something else in it.
    pub fn plans(&self) -> Result<Option<Plans>> {
        files::read_json_if_there(&self.directory.join(PLANS_FILE), PLANS_BYTES_MAX)
    }

    fn file(&self, ending: &str) -> PathBuf {
        let mut name = self.directory.clone().into_os_string();
        name.push(ending);
        name.into()
    }

    /// Lets a run that a killed judge left behind come to its end.
    fn wait_for_who_trains(&self, is_to_stop: &dyn Fn() -> bool) -> Result<()> {
        let mut is_told = false;
        while let Some(holder) = who_trains_in(&self.directory)?
            && !is_to_stop()
        {
            if !is_told {
                is_told = true;
                tracing::info!("{}: waiting for {holder}, which trains it", self.name);
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn start(&self, is_to_stop: &dyn Fn() -> bool) -> Result<ExitStatus> {
        let (log, settings) = (self.file(".log"), self.file(".toml"));
        tracing::info!("{}: training; its log is {}", self.name, log.display());
        let to = File::create(&log).map_err(Error::io("create", &log))?;
        let also = to.try_clone().map_err(Error::io("open", &log))?;
        let mut command = Command::new(PROGRAM);
        command.arg("train");
        if self.directory.join(CONFIG_FILE).is_file() {
            command.arg("--resume").arg(&self.directory);
        } else {
            write_settings(&settings, &self.settings)?;
            command.arg("--config").arg(&settings);
        }
        // In a group of its own: a terminal's signal reaches it once, through this process, and it saves what it has.
        command.process_group(0);
        end_with_this_thread(&mut command);
        let child = command.stdin(Stdio::null()).stdout(to).stderr(also);
        let child = child
            .spawn()
            .map_err(Error::io("start", Path::new(PROGRAM)))?;
        wait(child, is_to_stop).map_err(Error::io("wait for", &self.directory))
    }

    fn failure(&self, status: ExitStatus) -> Error {
        let log = self.file(".log");
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let shown = lines.len().saturating_sub(LOG_LINES_SHOWN);
        Error::Config(format!(
            "{}: train ended with {status}; {} ends with\n{}",
            self.name,
            log.display(),
            lines.get(shown..).unwrap_or_default().join("\n")
        ))
    }
}

/// Trains what is not there yet, at most so many side by side, and gives every run with its number to `take`, in their order;
/// whether all were trained, and none was stopped.
///
/// # Errors
/// Those of a run, or of `take`. The first one stops the others, which save what they have.
pub(super) fn train_all(
    planned: &[Planned],
    jobs: NonZeroUsize,
    shutdown: &Shutdown,
    mut take: impl FnMut(usize, &Run) -> Result<()>,
) -> Result<bool> {
    let (next, has_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let is_to_stop = || shutdown.is_requested() || has_failed.load(Ordering::Relaxed);
    let (sender, ended) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.get().min(planned.len()) {
            let (sender, next, is_to_stop) = (sender.clone(), &next, &is_to_stop);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(run) = planned.get(number) else {
                        return;
                    };
                    let run = run.train(is_to_stop);
                    let goes_on = matches!(run, Ok(Some(_)));
                    // After a failure nobody asks for the other runs.
                    if sender.send((number, run)).is_err() || !goes_on {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let (mut taken, mut waiting) = (0, BTreeMap::new());
        for (number, run) in ended {
            let took = run.and_then(|run| {
                waiting.extend(run.map(|run| (number, run)));
                while let Some(run) = waiting.remove(&taken) {
                    take(taken, &run)?;
                    taken += 1;
                }
                Ok(())
            });
            took.inspect_err(|_| has_failed.store(true, Ordering::Relaxed))?;
        }
        Ok(taken == planned.len())
    })
}

/// Waits for a run, and passes a wish to stop on.
fn wait(mut child: Child, is_to_stop: &dyn Fn() -> bool) -> std::io::Result<ExitStatus> {
    let mut is_told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if is_to_stop() && !is_told {
            is_told = true;
            Signal::Terminate.send(child.id())?;
        }
        thread::sleep(POLL);
    }
}
