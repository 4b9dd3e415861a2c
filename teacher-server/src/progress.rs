//! Provides progress: a bar with rate and ETA on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use distill_program::console;
use indicatif::{ProgressBar, ProgressStyle};

/// Time between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows how much of the plan, or of something before it, has been computed.
pub struct Progress {
    words: Words,
    display: Display,
    sequences: u64,
    sequences_done: u64,
    tokens: u64,
    tokens_done: u64,
    started: Option<Instant>,
    last_line: Option<Instant>,
}

/// What is counted, and where it is from.
#[derive(Clone, Copy, Default)]
pub struct Words {
    /// Who does it.
    pub label: &'static str,
    /// What `advance` counts first, e.g. `sequences`.
    pub parts: &'static str,
    /// What the rate is of, e.g. `tokens`.
    pub units: &'static str,
}

enum Display {
    Hidden,
    Lines,
    Bar(ProgressBar),
}

impl Progress {
    /// Over a plan of this many sequences and tokens, on standard error.
    pub fn new(sequences: u64, tokens: u64) -> Self {
        let words = Words {
            label: "teacher",
            parts: "sequences",
            units: "tokens",
        };
        Self::of(words, sequences, tokens)
    }

    /// As `new`, for something that is not the plan.
    pub fn of(words: Words, sequences: u64, tokens: u64) -> Self {
        let display = if std::io::stderr().is_terminal() {
            let template = "{prefix} {bar:30} {human_pos}/{human_len} {msg}, {per_sec}, ETA {eta}";
            let style = ProgressStyle::with_template(template);
            let bar = ProgressBar::new(tokens).with_prefix(words.label);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(words.units);
            Display::Bar(bar)
        } else {
            Display::Lines
        };
        Self::with(words, display, sequences, tokens)
    }

    /// Shows nothing.
    pub fn hidden() -> Self {
        Self::with(Words::default(), Display::Hidden, 0, 0)
    }

    fn with(words: Words, display: Display, sequences: u64, tokens: u64) -> Self {
        Self {
            words,
            display,
            sequences,
            sequences_done: 0,
            tokens,
            tokens_done: 0,
            started: None,
            last_line: None,
        }
    }

    /// Counts what was computed just now.
    pub fn advance(&mut self, sequences: u64, tokens: u64) {
        self.sequences_done += sequences;
        self.tokens_done += tokens;
        match &self.display {
            Display::Hidden => {}
            Display::Bar(bar) => {
                bar.inc(tokens);
                if self.sequences_done >= self.sequences {
                    bar.finish();
                }
            }
            Display::Lines => self.line(tokens),
        }
    }

    fn line(&mut self, tokens: u64) {
        let now = Instant::now();
        // The rate counts from the end of the first batch, which warms caches up.
        let Some(started) = self.started else {
            self.started = Some(now);
            self.tokens -= tokens.min(self.tokens);
            self.tokens_done = 0;
            return;
        };
        let complete = self.sequences_done >= self.sequences;
        let due = self
            .last_line
            .is_none_or(|last| now - last >= LINE_INTERVAL);
        if !due && !complete {
            return;
        }
        self.last_line = Some(now);
        let rate = self.tokens_done as f64 / (now - started).as_secs_f64().max(1e-9);
        let left = Duration::from_secs_f64(
            (self.tokens.saturating_sub(self.tokens_done)) as f64 / rate.max(1e-9),
        );
        let Words {
            label,
            parts,
            units,
        } = self.words;
        console::say(format_args!(
            "{label}: {}/{} {parts}, {rate:.0} {units}/s, ETA {}",
            self.sequences_done,
            self.sequences,
            indicatif::HumanDuration(left)
        ));
    }
}
