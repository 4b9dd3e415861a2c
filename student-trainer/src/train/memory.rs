//! Provides a run's peak of memory as it was planned, beside the one that was measured.

use std::path::Path;

use serde::Serialize;

use crate::{
    client::ServerInfo,
    config::TrainConfig,
    plan::{self, Process, RunRows},
    run::Memory,
};

/// Both peaks of the process, where it computes on the CPU; on a card only the planned one is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Peaks {
    planned_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured_bytes: Option<u64>,
}

/// What `plan` says of this run, where it can be said; a plan that cannot be made stops no run.
pub(super) fn planned(
    config: &TrainConfig,
    student: &Path,
    info: &ServerInfo,
    on_cpu: bool,
) -> Option<Process> {
    let rows = RunRows {
        seq_len: info.seq_len as usize,
        entries: Some(info.top_k as usize),
        state_rank: info.state.map(|(_, rank)| rank as usize),
    };
    let process = plan::of_run(config, student, rows, on_cpu);
    let process = process.map_err(|error| tracing::debug!("no plan of its memory: {error}"));
    let process = process.ok()?;
    tracing::info!(
        "memory: {} MiB planned at its peak ({})",
        process.peak_bytes >> 20,
        process.peak_phase.name()
    );
    Some(process)
}

/// Says the planned peak beside the measured one.
pub(super) fn compare(planned: Option<&Process>, on_cpu: bool) -> Option<Peaks> {
    let planned_bytes = planned?.peak_bytes;
    let measured = Memory::now().peak_rss_bytes;
    let measured_bytes = (on_cpu && measured > 0).then_some(measured);
    if let Some(measured) = measured_bytes {
        let percent = 100.0 * planned_bytes as f64 / measured as f64;
        tracing::info!(
            "memory: {} MiB at its peak; {} MiB were planned ({percent:.0} %)",
            measured >> 20,
            planned_bytes >> 20
        );
    }
    Some(Peaks {
        planned_bytes,
        measured_bytes,
    })
}
