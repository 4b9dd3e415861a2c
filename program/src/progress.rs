//! Provides the progress of long work: a bar on a terminal, a plain line now and then elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{console, units::Time};

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// How progress is shown.
pub struct Style<'a> {
    /// On a terminal, as indicatif reads it; the label is its prefix, the message ends with the time that is left.
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
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden())
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_prefix(label.to_owned());
            if total > 0 {
                console::show(&bar);
            }
            bar
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
            // There was nothing to show before.
            if bar.is_hidden() && self.total > 0 {
                console::show(bar);
            }
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
        self.message = message;
        self.refresh();
    }

    /// One more unit is done; `message` is how it went. The first and the last unit always get their line.
    pub fn advance(&mut self, message: impl FnOnce() -> String) {
        self.done += 1;
        self.tell(message());
        self.reach(self.done, self.done == self.total);
    }

    /// So many units are done now. A line is said where it is time for one, and of the last ones.
    pub fn reach(&mut self, done: u64, is_last: bool) {
        self.done = done;
        if self.bar.is_some() {
            self.refresh();
            return;
        }
        let last = self.last_line;
        let is_due = last.is_none_or(|at| at.elapsed() >= LINE_INTERVAL);
        if is_due || is_last {
            self.hold_line();
            console::say((self.line)(self));
        }
    }

    fn refresh(&self) {
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            bar.set_message(format!("{}{}", self.message, self.eta()));
        }
    }

    /// Says something in between.
    pub fn note(&self, message: &str) {
        console::say(message);
    }

    /// Ends the bar and leaves it where it is.
    pub fn finish(&self) {
        self.end(false);
    }

    /// Ends the bar and takes it away.
    pub fn clear(&self) {
        self.end(true);
    }

    fn end(&self, goes: bool) {
        let shown = |bar: &&ProgressBar| !bar.is_finished() && !bar.is_hidden();
        if let Some(bar) = self.bar.as_ref().filter(shown) {
            console::put_away(bar, goes);
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

    /// The time that is left at this rate, in words that end a message; nothing where no rate is known yet, or nothing is left.
    pub fn eta(&self) -> String {
        let left = self.total.saturating_sub(self.done);
        if left == 0 || self.done == self.before {
            return String::new();
        }
        let seconds = left as f64 / self.rate().max(1e-9);
        let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        format!(", {} left", Time(time.max(Duration::from_secs(1))))
    }
}

/// Work that ends in an error leaves its bar as it was.
impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STYLE: Style<'_> = Style {
        bar: "",
        line: |_| String::new(),
    };

    #[test]
    fn the_time_that_is_left_is_told_once_it_is_known_and_until_nothing_is_left() {
        let mut progress = Progress::start(&STYLE, "step", 3);
        assert_eq!(progress.eta(), "");
        progress.skip(1);
        assert_eq!(
            progress.eta(),
            "",
            "what was there says nothing of the rate"
        );
        progress.advance(String::new);
        // However fast it goes.
        assert_eq!(progress.eta(), ", 1 second left");
        progress.advance(String::new);
        assert_eq!(progress.eta(), "");
    }
}
