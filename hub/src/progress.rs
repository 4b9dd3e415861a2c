//! Provides the progress of a fetch or an upload, over the bytes of all files.

use distill_program::{
    console,
    progress::{Progress as Bytes, Style},
};
use indicatif::BinaryBytes;

const STYLE: Style<'_> = Style {
    bar: "{prefix} {bar:30} {binary_bytes}/{binary_total_bytes}  {msg}  {binary_bytes_per_sec}",
    line: |now| {
        let (done, total) = (BinaryBytes(now.done), BinaryBytes(now.total));
        let (rate, eta) = (BinaryBytes(now.whole_rate()), now.eta());
        format!("{}: {done} of {total}, {rate}/s{eta}", now.label)
    },
};

/// What is done with files, as a beginning and as an end is told.
#[derive(Clone, Copy)]
pub(crate) struct Verb {
    doing: &'static str,
    done: &'static str,
}

pub(crate) const FETCH: Verb = Verb {
    doing: "fetching",
    done: "fetched",
};
pub(crate) const SEND: Verb = Verb {
    doing: "sending",
    done: "sent",
};

/// Bytes of a repository that have arrived.
pub(crate) struct Progress {
    bytes: Bytes,
    verb: Verb,
    /// Of files that are whole.
    whole: u64,
}

impl Progress {
    /// Begins with nothing to do.
    pub fn new(label: &str, verb: Verb) -> Self {
        let mut bytes = Bytes::start(&STYLE, label, 0);
        bytes.hold_line();
        Self {
            bytes,
            verb,
            whole: 0,
        }
    }

    /// Adds what has been found to be missing.
    pub fn expect(&mut self, files: usize, bytes: u64) {
        self.bytes.expect(bytes);
        if files > 0 && self.bytes.bar().is_none() {
            let (label, size) = (&self.bytes.label, BinaryBytes(bytes));
            let doing = self.verb.doing;
            console::say(format_args!("{label}: {doing} {files} files, {size}"));
        }
    }

    /// Begins a file, `bytes` of which are there from an earlier run.
    pub fn begin(&mut self, file: &str, bytes: u64) {
        self.bytes.tell(file.to_owned());
        self.bytes.skip(bytes);
    }

    /// The file under way has `bytes` bytes now.
    pub fn at(&mut self, bytes: u64) {
        self.bytes.reach(self.whole + bytes, false);
    }

    /// The file under way is whole.
    pub fn end(&mut self, bytes: u64) {
        self.at(bytes);
        self.whole += bytes;
    }

    /// Everything is there.
    pub fn finish(&self) {
        let Bytes { label, total, .. } = &self.bytes;
        if self.bytes.bar().is_some() {
            self.bytes.clear();
        } else if *total > 0 {
            let (size, seconds) = (BinaryBytes(*total), self.bytes.seconds());
            let done = self.verb.done;
            console::say(format_args!("{label}: {done} {size} in {seconds:.1} s"));
        }
    }
}
