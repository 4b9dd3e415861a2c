//! Provides the log of a program: lines on standard error, which may be lost and never end it.

use std::{
    fmt,
    io::{self, IsTerminal},
};

use tracing_subscriber::{
    EnvFilter,
    fmt::{
        format::Writer,
        time::{FormatTime, SystemTime},
    },
};

use crate::console;

/// Logs what `RUST_LOG` asks for, or from `level` on.
pub fn start(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| console::Log)
        // It would say so with `eprintln!`.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_timer(Clock {
            is_watched: io::stderr().is_terminal(),
        })
        .init();
}

/// What a line begins with: for who watches it the time of day where the program runs, to the second; in a file, which is read
/// another day and beside others, date and time of UTC.
struct Clock {
    is_watched: bool,
}

impl FormatTime for Clock {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        if !self.is_watched {
            return SystemTime.format_time(out);
        }
        let (hour, minute, second) = time_of_day();
        write!(out, "{hour:02}:{minute:02}:{second:02}")
    }
}

#[expect(unsafe_code, reason = "the standard library knows no time zone")]
fn time_of_day() -> (i32, i32, i32) {
    // SAFETY: both calls write to the place that they are given, for whose type zeros are valid.
    let now = unsafe {
        let mut now = std::mem::zeroed();
        let seconds = libc::time(std::ptr::null_mut());
        libc::localtime_r(&raw const seconds, &raw mut now);
        now
    };
    (now.tm_hour, now.tm_min, now.tm_sec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_with_the_time_of_day_on_a_terminal_and_with_the_date_in_a_file() {
        let begin = |is_watched: bool| {
            let mut text = String::new();
            let mut writer = Writer::new(&mut text);
            Clock { is_watched }.format_time(&mut writer).unwrap();
            text
        };
        let text = begin(false);
        assert!(text.contains('T') && text.ends_with('Z'), "{text}");
        let text = begin(true);
        let parts: Vec<u32> = text.split(':').map(|part| part.parse().unwrap()).collect();
        assert!(text.len() == 8 && parts.len() == 3, "{text}");
        assert!(parts[0] < 24 && parts[1] < 60 && parts[2] <= 60, "{text}");
    }
}
