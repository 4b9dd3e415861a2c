//! Provides the report's memory table: what was measured, beside what the plan's arithmetic says of the student.

use distill_report::note;

use super::read::Run;
use crate::{config::TrainConfig, plan};

/// One line a run.
pub(super) fn table(runs: &[Run]) -> String {
    let row = |run: &Run| {
        let peak = run
            .curve("peak_rss_bytes")
            .iter()
            .map(|p| p.1)
            .fold(0.0, f64::max);
        let megabytes = |bytes: f64| format!("{:.0}", bytes / 1e6);
        let planned = planned_bytes(run).map(|bytes| megabytes(bytes as f64));
        vec![
            run.name.clone(),
            megabytes(peak),
            planned.unwrap_or_else(|| "–".to_owned()),
        ]
    };
    let heads = ["run", "peak resident MB", "planned MB"];
    distill_report::table(&heads, &runs.iter().map(row).collect::<Vec<_>>())
        + &note(
            "Measured: the trainer's resident memory at most, with the program, its libraries and mapped files. Planned: the \
             student's parts in <code>student-trainer plan</code>, at the length of the longest step, for a card of its own.",
        )
}

/// What the plan gives for the student's process; none where the run's student is not there any more.
fn planned_bytes(run: &Run) -> Option<u64> {
    let config: TrainConfig = run.config.clone().try_into().ok()?;
    let sequences = (config.batch_size * config.grad_accumulation).max(1) as f64;
    let tokens = run.curve("tokens").iter().map(|p| p.1).fold(0.0, f64::max);
    let seq_len = (tokens / sequences).ceil() as usize;
    let planned = plan::of_run(&config, &config.student, seq_len, true).ok()?;
    Some(planned.peak_bytes)
}
