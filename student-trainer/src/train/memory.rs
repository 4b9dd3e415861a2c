//! Provides a run's peak of memory as it was planned, beside the one that was measured.

use serde::Serialize;

use crate::{
    Result,
    client::ServerInfo,
    config::TrainConfig,
    plan::{self, Process, RunRows},
    run::{MEMORY_FILE, Memory, RunDirectory},
    student::{Place, StudentFiles},
};

use super::agreement::pair_tokens_max;

/// Bytes of that file.
const MEMORY_FILE_BYTES_MAX: u64 = 1 << 20;

/// What is written down of the plan.
#[derive(Serialize)]
struct Planned {
    /// Whether it speaks of this process's memory, and not of a card's.
    on_cpu: bool,
    #[serde(flatten)]
    process: Process,
}

/// Says what `plan` says of this run, and writes it part by part into the run's directory. A plan that cannot be made stops
/// no run.
///
/// # Errors
/// The file system refuses.
pub(super) fn plan_ahead(
    config: &TrainConfig,
    run_directory: &RunDirectory,
    files: &StudentFiles,
    info: &ServerInfo,
    place: &Place,
) -> Result<()> {
    let on_cpu = place.device.is_cpu();
    let rows = RunRows {
        seq_len: pair_tokens_max(config, info).max(info.seq_len as usize),
        entries: Some(info.top_k as usize),
        state_rank: info.state.map(|(_, rank)| rank as usize),
    };
    let process = match plan::of_run(config, &files.dir, rows, on_cpu) {
        Ok(process) => process,
        Err(error) => {
            tracing::warn!("the run's memory could not be planned: {error}");
            return Ok(());
        }
    };
    tracing::info!(
        "memory: {} MiB planned at its peak ({})",
        process.peak_bytes >> 20,
        process.peak_phase.name()
    );
    let planned = Planned { on_cpu, process };
    crate::files::write_json(&run_directory.join(MEMORY_FILE), &planned)
}

/// Says the planned peak beside the measured one, where a plan of this process's memory was written down.
pub(super) fn compare(run_directory: &RunDirectory) {
    let path = run_directory.join(MEMORY_FILE);
    let planned = crate::files::read_json(&path, MEMORY_FILE_BYTES_MAX);
    let planned: serde_json::Value = planned.unwrap_or_default();
    let on_cpu = planned["on_cpu"].as_bool().unwrap_or(false);
    let measured = Memory::now().peak_rss_bytes;
    let Some(planned) = planned["peak_bytes"]
        .as_u64()
        .filter(|_| on_cpu && measured > 0)
    else {
        return;
    };
    tracing::info!(
        "memory: {} MiB at its peak; {} MiB were planned ({:.0} %)",
        measured >> 20,
        planned >> 20,
        100.0 * planned as f64 / measured as f64
    );
}
