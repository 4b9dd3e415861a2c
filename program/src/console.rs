//! Provides printing that never ends a program: what cannot be written is lost, and only a result that is lost is an error.
//!
//! `println!` and `eprintln!` panic where the disk behind a log is full, its reader is gone, or its terminal is closed; hours
//! of work are worth more than a line about them. Clippy keeps both macros out of the programs.

use std::{
    fmt::Display,
    io::{self, ErrorKind, IsTerminal, Write},
    process::ExitCode,
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use clap::error::{ContextKind, ContextValue, Error as Usage};
use console::Term;
use indicatif::{MultiProgress, ProgressBar};

use crate::settings::flag_of;

/// Columns of the terminal that standard output is; `None` where it is none.
pub fn columns() -> Option<usize> {
    let terminal = io::stdout().is_terminal().then(Term::stdout)?;
    terminal.size_checked().map(|(_, columns)| columns.into())
}

/// Columns that a text takes on a terminal.
pub fn columns_of(text: &str) -> usize {
    console::measure_text_width(text)
}

/// Says something on standard error, with a line's end.
pub fn say(line: impl Display) {
    write_beside_bars(format!("{line}\n").as_bytes());
}

/// The bars that stand on the terminal, in the lines below all others.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// How many of them are under way.
static SHOWN: AtomicUsize = AtomicUsize::new(0);

/// Brings a bar to the terminal.
pub(crate) fn show(bar: &ProgressBar) {
    SHOWN.fetch_add(1, Ordering::Relaxed);
    BARS.add(bar.clone());
}

/// Ends a bar: it stays where it is, unless it is to go, or stands below one that is under way.
pub(crate) fn put_away(bar: &ProgressBar, goes: bool) {
    let is_below = SHOWN.fetch_sub(1, Ordering::Relaxed) > 1;
    if goes || is_below {
        bar.finish_and_clear();
        BARS.remove(bar);
    } else {
        bar.abandon();
    }
}

/// Writes lines to standard error in one piece, so that those of two processes are not mixed, above the bars that stand there. There is
/// nowhere left to report an error to: the terminal may be gone.
fn write_beside_bars(bytes: &[u8]) {
    let is_alone = SHOWN.load(Ordering::Relaxed) == 0 || BARS.is_hidden();
    let _ = if is_alone {
        io::stderr().write_all(bytes)
    } else {
        // `suspend` would panic where the terminal is gone.
        BARS.println(String::from_utf8_lossy(bytes).trim_end_matches('\n'))
    };
}

/// Prints the result of a command on standard output as it is.
///
/// A reader that has gone away, as `head` does, has seen enough.
///
/// # Errors
/// The result cannot be written, as on a full disk.
pub fn print(text: impl Display) -> io::Result<()> {
    stream(text).map(|_| ())
}

/// Prints a part of a result on standard output as soon as it is there. False where the reader has gone away, who wants no more.
///
/// # Errors
/// It cannot be written.
pub fn stream(text: impl Display) -> io::Result<bool> {
    stream_to(&mut io::stdout().lock(), &text.to_string())
}

fn stream_to(out: &mut impl Write, text: &str) -> io::Result<bool> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

static LOST: OnceLock<ErrorKind> = OnceLock::new();

/// Reports something that happened on standard output, as one line; work goes on where that fails, which is said once.
pub fn report(line: impl Display) {
    let mut out = io::stdout().lock();
    let written = out
        .write_all(format!("{line}\n").as_bytes())
        .and_then(|()| out.flush());
    if let Err(error) = written
        && LOST.set(error.kind()).is_ok()
    {
        say(format_args!(
            "standard output cannot be written: {error}; the work goes on without reports there"
        ));
    }
}

/// For commands whose reports are their result.
///
/// # Errors
/// Some of them could not be written, other than to a reader that has gone away.
pub fn reported() -> io::Result<()> {
    match LOST.get() {
        None | Some(ErrorKind::BrokenPipe) => Ok(()),
        Some(&kind) => Err(kind.into()),
    }
}

/// Prints what clap answers to a command line: help, or what is wrong with it.
pub fn answer(usage: &Usage) -> ExitCode {
    let printed = usage.print().and_then(|()| io::stdout().flush());
    match printed {
        Err(error) if !usage.use_stderr() && error.kind() != ErrorKind::BrokenPipe => {
            say(format_args!(
                "error: cannot write to standard output: {error}"
            ));
            ExitCode::FAILURE
        }
        // 0 or 2.
        _ => ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(u8::MAX)),
    }
}

/// A mistake in a command line; where its flag is none of ours, what `explain` says of it takes the place of clap's guess. Settings
/// in backticks become flags.
pub fn advise(mut usage: Usage, explain: impl Fn(&str) -> Option<String>) -> Usage {
    let Some(ContextValue::String(flag)) = usage.get(ContextKind::InvalidArg) else {
        return usage;
    };
    if let Some(advice) = explain(flag) {
        usage.remove(ContextKind::SuggestedArg);
        let advice = ContextValue::StyledStrs(vec![as_flags(&advice).into()]);
        usage.insert(ContextKind::Suggested, advice);
    }
    usage
}

fn as_flags(advice: &str) -> String {
    let parts = advice.split('`').enumerate();
    let flags = parts.map(|(i, part)| match i % 2 {
        0 => part.to_owned(),
        _ => format!("--{}", flag_of(part)),
    });
    flags.collect()
}

/// Standard error for a log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A line that is lost is no error of who logs.
        write_beside_bars(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refusing(ErrorKind);

    impl Write for Refusing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_has_seen_enough_and_a_full_disk_is_an_error() {
        let write = |kind| stream_to(&mut Refusing(kind), "result");
        assert!(!write(ErrorKind::BrokenPipe).unwrap());
        assert!(stream_to(&mut Vec::new(), "result").unwrap());
        for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
            assert_eq!(write(kind).unwrap_err().kind(), kind);
        }
    }
}
