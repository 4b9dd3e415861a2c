//! Provides the report's memory table: what was measured, beside what the plan's arithmetic says of the student.

use std::path::Path;

use distill_model::ModelConfig;
use distill_report::note;

use super::read::Run;
use crate::{
    config::{ComputeDtype, Quantize, TrainConfig, Tune},
    plan::arithmetic::{StudentBase, Workload, parts},
};

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

/// What the plan gives for the student's process; none where the run's student is not there any more, or is no adapter's.
fn planned_bytes(run: &Run) -> Option<u64> {
    let config: TrainConfig = run.config.clone().try_into().ok()?;
    if config.tune != Tune::Lora {
        return None;
    }
    let student = ModelConfig::load(Path::new(&config.student)).ok()?;
    let sequences = (config.batch_size * config.grad_accumulation).max(1) as f64;
    let tokens = run.curve("tokens").iter().map(|p| p.1).fold(0.0, f64::max);
    let workload = Workload {
        seq_len: (tokens / sequences).ceil() as u64,
        batch_size: config.batch_size as u64,
        lora_rank: config.lora_rank as u64,
        optimizer: config.optimizer,
        checkpointing: config.checkpointing,
        teacher_weight_bytes: 2,
        student_bytes: match config.dtype {
            ComputeDtype::Bf16 | ComputeDtype::F16 => 2,
            ComputeDtype::Auto | ComputeDtype::F32 => 4,
        },
        student_base: match config.quantize {
            Quantize::Nf4 => StudentBase::Nf4,
            Quantize::None => StudentBase::Dense,
        },
        chunk_rows: config.loss.chunk_rows as u64,
        state_rank: None,
        transport: config.loss.ot_weight > 0.0,
    };
    // The teacher's shape decides nothing about the student's parts.
    let parts = parts(&student, &student, &workload);
    let own = parts.iter().filter(|part| part.owner == "student");
    Some(own.map(|part| part.bytes).sum())
}
