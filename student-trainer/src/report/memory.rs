//! Provides the report's memory table: what was measured, beside what was planned when the run began.

use distill_report::note;
use serde_json::Value;

use super::read::Run;

/// One line a run.
pub(super) fn table(runs: &[Run]) -> String {
    let row = |run: &Run| {
        let peaks = run.curve("peak_rss_bytes");
        let peak = peaks.iter().map(|step| step.1).fold(0.0, f64::max);
        let planned = run.memory.get("peak_bytes").and_then(Value::as_f64);
        let on_cpu = run.memory.get("on_cpu").and_then(Value::as_bool);
        let ratio = planned.filter(|_| on_cpu == Some(true) && peak > 0.0);
        let ratio = ratio.map(|planned| planned / peak);
        let megabytes = |bytes: f64| format!("{:.0}", bytes / 1e6);
        let dash = || "–".to_owned();
        vec![
            run.name.clone(),
            megabytes(peak),
            planned.map_or_else(dash, megabytes),
            ratio.map_or_else(dash, |ratio| format!("{ratio:.2}")),
        ]
    };
    let heads = ["run", "peak resident MB", "planned MB", "planned / peak"];
    distill_report::table(&heads, &runs.iter().map(row).collect::<Vec<_>>())
        + &note(
            "Measured: the trainer's resident memory at most, with the program, its libraries and mapped files. Planned: what \
             <code>student-trainer plan</code> says of these settings, in <code>memory.json</code> part by part; on a GPU it is the \
             GPU's memory, which is another than the measured one.",
        )
}
