//! Provides the progress of a fetch: a bar over bytes on a terminal, a plain line now and then elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use distill_program::console;
use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressStyle};

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const TEMPLATE: &str = "{prefix} {bar:30} {binary_bytes}/{binary_total_bytes}  {msg}  {binary_bytes_per_sec}  ETA {eta}";

/// Bytes of a repository that have arrived.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    total: u64,
    /// Of files that are whole.
    done: u64,
    /// Of the file under way.
    current: u64,
    /// Of these, what was there when the transfer began.
    resumed: u64,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// Begins with nothing to do.
    pub fn new(label: String) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(TEMPLATE);
            ProgressBar::new(0)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_prefix(label.clone())
        });
        let now = Instant::now();
        Self {
            bar,
            label,
            total: 0,
            done: 0,
            current: 0,
            resumed: 0,
            started: now,
            last_line: now,
        }
    }

    /// Adds what has been found to be missing.
    pub fn expect(&mut self, files: usize, bytes: u64) {
        self.total += bytes;
        match &self.bar {
            Some(bar) => bar.set_length(self.total),
            None if files > 0 => console::say(format_args!(
                "{}: fetching {files} files, {}",
                self.label,
                BinaryBytes(bytes)
            )),
            None => {}
        }
    }

    /// Begins a file, `bytes` of which are there from an earlier run.
    pub fn begin(&mut self, file: &str, bytes: u64) {
        self.resumed += bytes;
        self.at(bytes);
        if let Some(bar) = &self.bar {
            bar.set_message(file.to_owned());
        }
    }

    /// The file under way has `bytes` bytes now.
    pub fn at(&mut self, bytes: u64) {
        self.current = bytes;
        let position = self.done + self.current;
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let fresh = position.saturating_sub(self.resumed) as f64;
            let rate = fresh / self.started.elapsed().as_secs_f64().max(1e-9);
            let left = self.total.saturating_sub(position) as f64 / rate.max(1.0);
            console::say(format_args!(
                "{}: {} of {}, {}/s, ETA {}",
                self.label,
                BinaryBytes(position),
                BinaryBytes(self.total),
                BinaryBytes(rate as u64),
                HumanDuration(Duration::from_secs(left as u64))
            ));
        }
    }

    /// The file under way is whole.
    pub fn end(&mut self, bytes: u64) {
        self.at(bytes);
        self.done += bytes;
        self.current = 0;
    }

    /// Everything is there.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        } else if self.total > 0 {
            console::say(format_args!(
                "{}: fetched {} in {:.1} s",
                self.label,
                BinaryBytes(self.total),
                self.started.elapsed().as_secs_f64()
            ));
        }
    }
}
