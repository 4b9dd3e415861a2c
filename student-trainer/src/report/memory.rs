//! Provides the report's memory table: what was measured, beside what the plan's arithmetic says of the student.

use distill_report::note;

use super::read::Run;
use crate::{
    config::TrainConfig,
    plan::{self, RunRows},
};

/// One line a run.
pub(super) fn table(runs: &[Run]) -> String {
    let row = |run: &Run| {
        let steps = run.curve("peak_rss_bytes");
        let measured = steps.iter().map(|step| step.1).fold(0.0, f64::max);
        // The last checkpoint comes after the last step.
        let measured = at_the_end(run, "measured_bytes").map_or(measured, |end| end.max(measured));
        let planned = planned_bytes(run, steps.len());
        let megabytes = |bytes: f64| format!("{:.0}", bytes / 1e6);
        let ratio = planned.filter(|_| measured > 0.0);
        let ratio = ratio.map(|planned| format!("{:.2}", planned / measured));
        let dash = || "–".to_owned();
        vec![
            run.name.clone(),
            megabytes(measured),
            planned.map_or_else(dash, megabytes),
            ratio.unwrap_or_else(dash),
        ]
    };
    let heads = ["run", "peak resident MB", "planned MB", "planned / peak"];
    distill_report::table(&heads, &runs.iter().map(row).collect::<Vec<_>>())
        + &note(
            "Measured: the trainer's resident memory at most, with the program, its libraries and mapped files. Planned: what \
             <code>student-trainer plan --device cpu</code> says of these settings.",
        )
}

/// What a finished run wrote down of its memory.
fn at_the_end(run: &Run, key: &str) -> Option<f64> {
    run.summary.get("memory")?.get(key)?.as_f64()
}

/// What was planned for the run; of one that is not finished, what the plan gives at the length of the longest step, where
/// its student is still there.
fn planned_bytes(run: &Run, steps: usize) -> Option<f64> {
    if let Some(planned) = at_the_end(run, "planned_bytes") {
        return Some(planned);
    }
    let config: TrainConfig = run.config.clone().try_into().ok()?;
    let sequences = (config.batch_size * config.grad_accumulation).max(1) as f64;
    let tokens = run.curve("tokens").iter().map(|p| p.1).fold(0.0, f64::max);
    let rows = RunRows {
        seq_len: (tokens / sequences).ceil() as usize,
        entries: None,
        state_rank: None,
    };
    let planned = plan::of_run(&config, &config.student, rows, true).ok();
    planned
        .filter(|_| steps > 0)
        .map(|planned| planned.peak_bytes as f64)
}
