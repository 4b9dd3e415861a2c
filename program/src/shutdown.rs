//! Provides the wish to stop: the first signal lets work end in order, an impatient one ends it at once.

use std::{
    io,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    signal::unix::{self, SignalKind},
    sync::watch,
};

/// A shell's exit status for a process that ended by signal N is this and N.
const SIGNALLED: u8 = 128;

/// Whether a signal has come; for those who wait deep below whoever has the [`Shutdown`].
static CAME: AtomicBool = AtomicBool::new(false);

/// Whether a signal has asked this process to stop.
pub fn has_signal_come() -> bool {
    CAME.load(Ordering::Relaxed)
}

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of its work is done.
    Complete,
    /// Somebody asked it to stop before.
    Interrupted,
    /// With this exit status, of which it says nothing more.
    Status(u8),
}

/// A signal that asks a program to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: the terminal is gone.
    Hangup,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: what `kill`, service managers and batch systems send.
    Terminate,
}

impl Signal {
    fn number(self) -> u8 {
        match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }

    /// The exit status of work that it cut short: 129, 130 or 143.
    pub fn exit_status(self) -> u8 {
        SIGNALLED + self.number()
    }

    /// Sends it to a process.
    ///
    /// # Errors
    /// The process is gone, or somebody else's.
    #[expect(unsafe_code, reason = "there is no safe interface")]
    pub fn send(self, process: u32) -> io::Result<()> {
        // Not 0 or below, which mean whole groups of processes.
        let process = libc::pid_t::try_from(process).ok().filter(|&id| id > 0);
        let process = process.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: two numbers, and nothing in this process changes.
        if unsafe { libc::kill(process, self.number().into()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    requested: bool,
    /// The latest one.
    signal: Option<Signal>,
    /// Whether the next SIGINT or SIGTERM ends the process at once.
    is_impatient: bool,
}

/// A flag that many wait for and one raises.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<watch::Sender<State>>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }
}

impl Shutdown {
    /// Asks everyone to stop.
    pub fn request(&self) {
        self.0.send_modify(|state| state.requested = true);
    }

    /// Takes Ctrl-C back that asked to stop, and was meant for what has stopped alone: the next one is the first again. Other
    /// signals stay.
    pub fn withdraw_interrupt(&self) {
        self.0.send_if_modified(|state| {
            let is_ours = state.signal == Some(Signal::Interrupt);
            if is_ours {
                *state = State::default();
                CAME.store(false, Ordering::Relaxed);
            }
            is_ours
        });
    }

    /// Whether someone asked.
    pub fn is_requested(&self) -> bool {
        self.0.borrow().requested
    }

    /// Returns once someone asked.
    pub async fn requested(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|state| state.requested).await;
    }

    /// The latest signal that came.
    pub fn signal(&self) -> Option<Signal> {
        self.0.borrow().signal
    }

    /// `Complete` where the work was whole when it ended, whatever came meanwhile.
    pub fn outcome(&self, is_whole: bool) -> Outcome {
        if is_whole || !self.is_requested() {
            return Outcome::Complete;
        }
        Outcome::Interrupted
    }

    /// The exit status of a command that ended so: 0, or what says which signal cut it short.
    pub fn exit_code(&self, outcome: Outcome) -> ExitCode {
        match outcome {
            Outcome::Complete => ExitCode::SUCCESS,
            Outcome::Interrupted => {
                // Whoever asks without a signal stands for Ctrl-C.
                let signal = self.signal().unwrap_or(Signal::Interrupt);
                ExitCode::from(signal.exit_status())
            }
            Outcome::Status(status) => ExitCode::from(status),
        }
    }

    /// Raises the flag on SIGINT, SIGTERM and SIGHUP, and calls `first` for the first of them, on a thread of its own; a
    /// second SIGINT or SIGTERM ends the process at once.
    ///
    /// A closed terminal may be told to a process twice, by the system and by the shell, so SIGHUP never counts as
    /// impatience. Where it is ignored from the start, as under `nohup`, it stays so.
    ///
    /// # Errors
    /// The system refuses a signal handler or a thread.
    pub fn on_signals(&self, mut first: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut signals = {
            let _inside = runtime.enter();
            Signals::catch()?
        };
        let shutdown = self.clone();
        let listen = async move {
            loop {
                let signal = signals.next().await;
                let may_exit = signal != Signal::Hangup;
                let State {
                    requested,
                    is_impatient,
                    ..
                } = *shutdown.0.borrow();
                if may_exit && is_impatient {
                    std::process::exit(signal.exit_status().into());
                }
                CAME.store(true, Ordering::Relaxed);
                let is_first = !requested;
                shutdown.0.send_modify(|state| {
                    *state = State {
                        requested: true,
                        signal: Some(signal),
                        is_impatient: is_impatient || may_exit,
                    };
                });
                if is_first {
                    first(signal);
                }
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned());
        thread.spawn(move || runtime.block_on(listen))?;
        Ok(())
    }
}

/// The handlers.
struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    /// None where nobody is to react to it.
    hangup: Option<unix::Signal>,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        let hangup = if is_hangup_ignored()? {
            None
        } else {
            Some(unix::signal(SignalKind::hangup())?)
        };
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hangup,
        })
    }

    async fn next(&mut self) -> Signal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
            _ = hangup => Signal::Hangup,
        }
    }
}

#[expect(unsafe_code, reason = "no safe interface tells what a signal does now")]
fn is_hangup_ignored() -> io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null second argument changes nothing; the third points to room for the answer, for which zeros are valid.
    let (status, action) = unsafe {
        let status = libc::sigaction(libc::SIGHUP, std::ptr::null(), action.as_mut_ptr());
        (status, action.assume_init())
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_was_whole_before_it_was_stopped_is_complete() {
        let shutdown = Shutdown::default();
        assert_eq!(shutdown.outcome(false), Outcome::Complete);
        shutdown.request();
        assert_eq!(shutdown.outcome(true), Outcome::Complete);
        assert_eq!(shutdown.outcome(false), Outcome::Interrupted);
        assert!(shutdown.is_requested() && shutdown.signal().is_none());
    }

    #[test]
    fn a_withdrawn_interrupt_asks_nobody_to_stop_and_other_signals_stay() {
        let shutdown = Shutdown::default();
        for (signal, stays) in [(Signal::Interrupt, false), (Signal::Terminate, true)] {
            shutdown.0.send_replace(State {
                requested: true,
                signal: Some(signal),
                is_impatient: true,
            });
            shutdown.withdraw_interrupt();
            assert_eq!(shutdown.is_requested(), stays);
            assert_eq!(shutdown.0.borrow().is_impatient, stays);
        }
    }

    #[test]
    fn a_signal_s_exit_status_is_a_shell_s() {
        let statuses =
            [Signal::Hangup, Signal::Interrupt, Signal::Terminate].map(Signal::exit_status);
        assert_eq!(statuses, [129, 130, 143]);
    }
}
