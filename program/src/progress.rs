//! Provides the progress of long work: a bar on a terminal, a plain line now and then elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::console;

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// How progress is shown.
pub struct Style<'a> {
    /// On a terminal, as indicatif reads it; the label is its prefix.
    pub bar: &'a str,
    /// Elsewhere.
    pub line: fn(&Progress) -> String,
}

/// Units that are done of those that there are, with the rate and the time left that follow.
pub struct Progress {
    bar: Option<ProgressBar>,
    line: fn(&Progress) -> String,
    /// What they are, or are part of.
    pub label: String,
    /// How the last one went.
    pub message: String,
    /// Units there are.
    pub total: u64,
    /// Units done.
    pub done: u64,
    /// Units that were done before the time began.
    before: u64,
    started: Instant,
    last_line: Option<Instant>,
}

impl Progress {
    /// None of `total` units yet.
    pub fn start(style: &Style<'_>, label: &str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(style.bar);
            ProgressBar::new(total)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_prefix(label.to_owned())
        });
        Self {
            bar,
            line: style.line,
            label: label.to_owned(),
            message: String::new(),
            total,
            done: 0,
            before: 0,
            started: Instant::now(),
            last_line: None,
        }
    }

    /// The bar, where there is a terminal.
    pub fn bar(&self) -> Option<&ProgressBar> {
        self.bar.as_ref()
    }

    /// There are `more` units.
    pub fn expect(&mut self, more: u64) {
        self.total += more;
        if let Some(bar) = &self.bar {
            bar.set_length(self.total);
        }
    }

    /// `units` are done without any work in this time.
    pub fn skip(&mut self, units: u64) {
        self.done += units;
        self.before += units;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
    }

    /// The rate counts from here.
    pub fn restart(&mut self) {
        (self.before, self.started) = (self.done, Instant::now());
    }

    /// The first line can wait.
    pub fn hold_line(&mut self) {
        self.last_line = Some(Instant::now());
    }

    /// How the next unit goes.
    pub fn tell(&mut self, message: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.clone());
        }
        self.message = message;
    }

    /// One more unit is done; `message` is how it went. The first and the last unit always get their line.
    pub fn advance(&mut self, message: impl FnOnce() -> String) {
        self.tell(message());
        self.reach(self.done + 1, self.done + 1 == self.total);
    }

    /// So many units are done now. A line is said where it is time for one, and of the last ones.
    pub fn reach(&mut self, done: u64, is_last: bool) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let last = self.last_line;
        let is_due = last.is_none_or(|at| at.elapsed() >= LINE_INTERVAL);
        if is_due || is_last {
            self.hold_line();
            console::say((self.line)(self));
        }
    }

    /// Says something in between.
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

    /// Seconds since the time began.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Units a second.
    pub fn rate(&self) -> f64 {
        self.done.saturating_sub(self.before) as f64 / self.seconds().max(1e-9)
    }

    /// Whole units a second, as far as a u64 goes.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates"
    )]
    pub fn whole_rate(&self) -> u64 {
        self.rate() as u64
    }

    /// The time that is left at this rate, in words.
    pub fn eta(&self) -> HumanDuration {
        let left = self.total.saturating_sub(self.done) as f64 / self.rate().max(1e-9);
        HumanDuration(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX))
    }
}
