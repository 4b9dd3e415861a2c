//! Provides the progress of a fetch, over the bytes of all files.

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

/// Bytes of a repository that have arrived.
pub(crate) struct Progress {
    bytes: Bytes,
    /// Of files that are whole.
    whole: u64,
}

impl Progress {
    /// Begins with nothing to do.
    pub fn new(label: &str) -> Self {
        let mut bytes = Bytes::start(&STYLE, label, 0);
        bytes.hold_line();
        Self { bytes, whole: 0 }
    }

    /// Adds what has been found to be missing.
    pub fn expect(&mut self, files: usize, bytes: u64) {
        self.bytes.expect(bytes);
        if files > 0 && self.bytes.bar().is_none() {
            let (label, size) = (&self.bytes.label, BinaryBytes(bytes));
            console::say(format_args!("{label}: fetching {files} files, {size}"));
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
            console::say(format_args!("{label}: fetched {size} in {seconds:.1} s"));
        }
    }
}
