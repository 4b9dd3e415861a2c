//! Provides a run's peak of memory as it was planned, beside the one that was measured.

use crate::{
    Result,
    client::ServerInfo,
    config::TrainConfig,
    plan::{self, Process, RunRows},
    run::{MEMORY_FILE, Memory, RunDirectory, write_atomically},
    student::StudentFiles,
};

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
    on_cpu: bool,
) -> Result<Option<Process>> {
    let rows = RunRows {
        seq_len: info.seq_len as usize,
        entries: Some(info.top_k as usize),
        state_rank: info.state.map(|(_, rank)| rank as usize),
    };
    let process = match plan::of_run(config, &files.dir, rows, on_cpu) {
        Ok(process) => process,
        Err(error) => {
            tracing::warn!("the run's memory could not be planned: {error}");
            return Ok(None);
        }
    };
    let json = format!("{:#}\n", serde_json::json!(process));
    write_atomically(&run_directory.join(MEMORY_FILE), json.as_bytes())?;
    tracing::info!(
        "memory: {} MiB planned at its peak ({})",
        process.peak_bytes >> 20,
        process.peak_phase.name()
    );
    Ok(Some(process))
}

/// Says the planned peak beside the measured one, where the process computes on the CPU and the system tells.
pub(super) fn compare(planned: Option<&Process>, on_cpu: bool) {
    let measured = Memory::now().peak_rss_bytes;
    let Some(planned) = planned.filter(|_| on_cpu && measured > 0) else {
        return;
    };
    tracing::info!(
        "memory: {} MiB at its peak; {} MiB were planned ({:.0} %)",
        measured >> 20,
        planned.peak_bytes >> 20,
        100.0 * planned.peak_bytes as f64 / measured as f64
    );
}
