//! Provides the report's memory: what was measured, beside what was planned when the run began, and the plan's parts.

use distill_report::Block;
use serde_json::{Map, Value};

use super::read::Run;

/// One line a run, and of a single run a table of the parts.
pub(super) fn memory(runs: &[Run]) -> Vec<Block> {
    let row = |run: &Run| {
        let peaks = run.curve("peak_rss_bytes");
        let peak = peaks.iter().map(|step| step.1).fold(0.0, f64::max);
        let planned = run.memory.get("peak_bytes").and_then(Value::as_f64);
        let on_cpu = run.memory.get("on_cpu").and_then(Value::as_bool);
        let ratio = planned.filter(|_| on_cpu == Some(true) && peak > 0.0);
        let ratio = ratio.map(|planned| planned / peak);
        let dash = || "–".to_owned();
        vec![
            run.name.clone(),
            megabytes(peak),
            planned.map_or_else(dash, megabytes),
            ratio.map_or_else(dash, |ratio| format!("{ratio:.2}")),
        ]
    };
    let heads = [
        "run",
        "most that was resident, MB",
        "planned, MB",
        "planned / measured",
    ];
    let mut blocks = vec![
        Block::table(&heads, runs.iter().map(row).collect()),
        Block::Note(
            "Measured: the trainer's resident memory at most, with the program, its libraries and mapped files. Planned: what \
             `student-trainer plan` says of these settings; on a GPU it is the GPU's memory, which is another than the measured \
             one."
                .to_owned(),
        ),
    ];
    if let [run] = runs {
        blocks.extend(parts(&run.memory));
    }
    blocks
}

fn megabytes(bytes: f64) -> String {
    format!("{:.0}", bytes / 1e6)
}

/// What the plan is made of, the largest first; `None` where there is no plan, or one of a release that wrote no parts.
fn parts(memory: &Map<String, Value>) -> Option<Block> {
    let peak_phase = memory.get("peak_phase").and_then(Value::as_str);
    let mut parts: Vec<(f64, Vec<String>)> = Vec::new();
    for part in memory.get("parts")?.as_array()? {
        let bytes = part.get("bytes")?.as_f64()?;
        let phases = part.get("phases")?.as_array()?;
        let phases: Vec<&str> = phases.iter().filter_map(Value::as_str).collect();
        let is_at_peak = phases.is_empty() || peak_phase.is_some_and(|at| phases.contains(&at));
        let when = if phases.is_empty() {
            "always".to_owned()
        } else {
            phases.join(", ")
        };
        let is_at_peak = if is_at_peak { "yes" } else { "no" };
        parts.push((
            bytes,
            vec![
                part.get("name")?.as_str()?.to_owned(),
                format!("{:.1}", bytes / 1e6),
                when,
                is_at_peak.to_owned(),
            ],
        ));
    }
    parts.sort_by(|a, b| b.0.total_cmp(&a.0));
    let heads = ["part of the plan", "MB", "there while", "at the peak"];
    let rows = parts.into_iter().map(|(_, row)| row);
    Some(Block::table(&heads, rows.collect()))
}
