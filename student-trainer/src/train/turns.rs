/*! Provides a run beside a teacher that shares its device: processes that each take a turn there, one after the other.

```text
 this process:  terminal, signals, lock, lease, exit status          never on the device
      │ start      ^ frames are there    │ granted, give back, stop       ^ exit status
      v            │                     v                                │
 a turn:  agree ──> frames ──────────> load, restore ──> steps ──> hand over what a checkpoint holds
```

A turn is a resumed run, so that it goes on to the same bits. Only the end of a process gives everything back that it has on a
card, its context among it.
*/

use std::{
    convert::Infallible,
    ffi::OsString,
    io::Write,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::Path,
    process::ExitStatus,
    time::Instant,
};

use distill_program::{Signal, console, inherited::Inherited};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    runtime::Handle,
};

use super::{
    Ending,
    turn::{HANDED_OVER, Leaving, READY, SharedFiles, VARIABLE, Word},
};
use crate::{
    Error, Result,
    client::{DeviceLease, Teacher, holder_name},
    config::TrainConfig,
    run::RunDirectory,
    shutdown::Shutdown,
};

/// This program, also where its file has been replaced since.
pub(crate) const PROGRAM: &str = "/proc/self/exe";
/// The student's files were looked for already.
const OFFLINE: (&str, &str) = ("HF_HUB_OFFLINE", "1");
/// A shell's exit status for a process that ended by signal N is this and N.
const SIGNALLED: i32 = 128;
/// Signals that ask to stop.
const STOPS: [i32; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];

/// Starts one process after the other until the run is over.
///
/// # Errors
/// A process that cannot be started; a teacher that refuses the device or stays away.
pub(super) fn lead(
    config: &TrainConfig,
    run_directory: &RunDirectory,
    teacher: Teacher,
    answers: &Inherited,
    runtime: &Handle,
    shutdown: &Shutdown,
) -> Result<Ending> {
    run_directory.share()?;
    let path = run_directory.path();
    let memory = Inherited::in_memory().map_err(Error::io("share memory for", path))?;
    let disk = Inherited::on_disk(path).map_err(Error::io("create a file in", path))?;
    let files = SharedFiles {
        memory: memory.path(),
        disk: disk.path(),
        answers: answers.path(),
    };
    let files = serde_json::to_string(&files).map_err(|e| Error::file(path, e))?;
    let holder = holder_name(path);
    let mut lease = DeviceLease::new(runtime.clone(), teacher, holder, config.reconnect_attempts);
    let mut left = None;
    loop {
        let ended = runtime.block_on(async {
            let (child, channel) = start(path, &files)?;
            accompany(child, channel, &mut lease, left, shutdown).await
        });
        // The process is gone, and everything of it on the device.
        let asked = lease.give_back_since();
        lease.release();
        let release_seconds = asked.map(|asked| asked.elapsed().as_secs_f64());
        left = Some((release_seconds, Instant::now()));
        let ended = ended?;
        if ended.signal().is_some_and(|signal| STOPS.contains(&signal)) {
            // It came before the process listened to signals. The next one is told to stop, and saves what there is.
            shutdown.request();
            continue;
        }
        let status = status(ended);
        if status == HANDED_OVER {
            continue;
        }
        // A process that was told to stop was not told by which signal.
        let is_stop = ended.code().is_some_and(|code| code > SIGNALLED);
        let signal = shutdown.signal().filter(|_| is_stop);
        return Ok(Ending::Elsewhere(
            signal.map_or(status, Signal::exit_status),
        ));
    }
}

/// Starts a turn of the run in `path`, and gives the way to speak with it.
fn start(path: &Path, files: &str) -> Result<(Child, UnixStream)> {
    let refused = || Error::io("start", Path::new(PROGRAM));
    let (ours, theirs) = UnixStream::pair().map_err(refused())?;
    let name = std::env::args_os().next();
    let mut resume = OsString::from("--resume=");
    resume.push(path);
    let mut command = Command::new(PROGRAM);
    command
        .arg0(name.unwrap_or_else(|| OsString::from(env!("CARGO_PKG_NAME"))))
        .arg("train")
        .arg(resume)
        .env(VARIABLE, files)
        .env(OFFLINE.0, OFFLINE.1)
        .stdin(OwnedFd::from(theirs))
        .kill_on_drop(true);
    Ok((command.spawn().map_err(refused())?, ours))
}

/// Gets the device for a process once that is ready, and tells it what it has to know, until it ends.
async fn accompany(
    mut child: Child,
    channel: UnixStream,
    lease: &mut DeviceLease,
    left: Option<(Option<f64>, Instant)>,
    shutdown: &Shutdown,
) -> Result<ExitStatus> {
    let broken = || Error::io("speak with", Path::new(PROGRAM));
    let heard = channel.try_clone().map_err(broken())?;
    heard.set_nonblocking(true).map_err(broken())?;
    let mut heard = tokio::net::UnixStream::from_std(heard).map_err(broken())?;
    // Of a process that does not listen any more its end tells.
    let tell = |word: Word| {
        let line = serde_json::to_string(&word).unwrap_or_default() + "\n";
        let _ = (&channel).write_all(line.as_bytes());
    };
    let turn = async {
        let is_ready = heard.read_u8().await.is_ok_and(|word| word == READY);
        if is_ready && lease.acquire(shutdown).await? {
            tell(Word::Granted(left.map(|(release_seconds, at)| Leaving {
                release_seconds,
                waited_seconds: at.elapsed().as_secs_f64(),
            })));
            lease.to_give_back().await;
            tell(Word::GiveBack);
        }
        std::future::pending::<Result<Infallible>>().await
    };
    let stop = async {
        shutdown.requested().await;
        tell(Word::Stop);
        std::future::pending::<Result<Infallible>>().await
    };
    let failed = tokio::select! {
        status = child.wait() => return status.map_err(broken()),
        failed = async { tokio::try_join!(turn, stop) } => failed,
    };
    let Err(error) = failed;
    // What was handed over is worth keeping.
    tell(Word::Stop);
    child.wait().await.map_err(broken())?;
    Err(error)
}

/// The exit status that this process takes over.
fn status(ended: ExitStatus) -> u8 {
    if let Some(signal) = ended.signal() {
        console::say(format_args!(
            "error: the process that computes was ended by signal {signal}{}; --resume goes on from the last checkpoint",
            if signal == libc::SIGKILL {
                ", as the system does where memory runs out"
            } else {
                ""
            }
        ));
    }
    let signalled = ended.signal().map(|signal| SIGNALLED + signal);
    let status = ended.code().or(signalled).unwrap_or(1);
    u8::try_from(status).unwrap_or(u8::MAX)
}
