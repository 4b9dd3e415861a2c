//! Provides the progress of long work: a bar on a terminal, a plain line now and then elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use distill_program::console;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Progress over a known number of units.
pub struct Progress {
    bar: Option<ProgressBar>,
    unit: &'static str,
    total: u64,
    /// Done by an earlier process.
    before: u64,
    done: u64,
    started: Instant,
    last_line: Option<Instant>,
}

impl Progress {
    /// Starts at zero of `total` units, e.g. `"step"`.
    pub fn start(total: u64, unit: &'static str) -> Self {
        Self::resume(0, total, unit)
    }

    /// Starts at `done` of `total` units, which took someone else's time.
    pub fn resume(done: u64, total: u64, unit: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  ETA {eta}");
            ProgressBar::new(total)
                .with_position(done)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self {
            bar,
            unit,
            total,
            before: done,
            done,
            started: Instant::now(),
            last_line: None,
        }
    }

    /// One more unit is done; `message` says how it went. The first and the last unit always get their line.
    pub fn advance(&mut self, message: impl Fn() -> String) {
        self.done += 1;
        if let Some(bar) = &self.bar {
            bar.set_message(message());
            bar.inc(1);
            return;
        }
        let due = self
            .last_line
            .is_none_or(|at| at.elapsed() >= LINE_INTERVAL);
        if due || self.done == self.total {
            self.last_line = Some(Instant::now());
            console::say(format_args!(
                "{} {}/{}  {}  ETA {}",
                self.unit,
                self.done,
                self.total,
                message(),
                HumanDuration(self.remaining())
            ));
        }
    }

    /// Says something between two units.
    pub fn note(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.println(message),
            None => console::say(message),
        }
    }

    /// Ends the bar and leaves it where it is.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }

    fn remaining(&self) -> Duration {
        let left = self.total.saturating_sub(self.done) as f64;
        let each = self.started.elapsed().as_secs_f64() / (self.done - self.before).max(1) as f64;
        Duration::from_secs_f64(left * each)
    }
}
