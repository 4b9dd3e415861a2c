//! Provides the progress of steps, sequences and tensors, as people watch it.

pub use distill_program::progress::Progress;
use distill_program::progress::Style;

const STYLE: Style<'_> = Style {
    bar: "{bar:30} {pos}/{len}  {msg}",
    line: |now| {
        let (unit, message, eta) = (&now.label, &now.message, now.eta());
        format!("{unit} {}/{}  {message}{eta}", now.done, now.total)
    },
};

/// Progress over `total` units, e.g. `"step"`.
pub fn progress(total: usize, unit: &str) -> Progress {
    Progress::start(&STYLE, unit, total as u64)
}
