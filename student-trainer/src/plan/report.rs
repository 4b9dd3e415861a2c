//! Provides the plan as people and programs read it: the table, whether it fits, and which setting lowers it.

use std::fmt;

use distill_model::ModelConfig;
use serde::Serialize;

use super::arithmetic::{Part, StudentBase, Workload, parts, total};
use crate::optimizer::OptimizerKind;

/// What fits, and what would lower it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanReport {
    /// Every part.
    pub parts: Vec<Part>,
    /// Both processes at once.
    pub resident_bytes: u64,
    /// The larger of both, as when they take turns on the card.
    pub swap_bytes: u64,
    /// The trainer alone, with the teacher's answers on disk.
    pub cached_bytes: u64,
    /// The card.
    pub vram_bytes: u64,
    /// Whether both fit at once.
    pub fits_resident: bool,
    /// Settings that lower the total, the largest saving first.
    pub savings: Vec<Saving>,
}

/// One setting that lowers the total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Saving {
    /// What to change.
    pub setting: String,
    /// What it saves.
    pub bytes: u64,
}

impl PlanReport {
    /// Adds everything up for one card of `vram_mib`.
    pub fn new(
        teacher: &ModelConfig,
        student: &ModelConfig,
        workload: &Workload,
        vram_mib: u64,
    ) -> Self {
        let parts = parts(teacher, student, workload);
        let resident_bytes = total(&parts);
        let of = |owner: &str| -> u64 {
            let own = parts.iter().filter(|part| part.owner == owner);
            own.map(|part| part.bytes).sum()
        };
        let (teacher_bytes, student_bytes, shared) = (of("teacher"), of("student"), of("both"));
        let vram_bytes = vram_mib << 20;
        Self {
            swap_bytes: teacher_bytes.max(student_bytes) + shared,
            // One context, and the slack of one process, are half of what both have.
            cached_bytes: student_bytes + shared / 2,
            vram_bytes,
            fits_resident: resident_bytes <= vram_bytes,
            savings: savings(teacher, student, workload, resident_bytes),
            parts,
            resident_bytes,
        }
    }
}

/// Tries the settings that trade memory for something else.
fn savings(
    teacher: &ModelConfig,
    student: &ModelConfig,
    now: &Workload,
    total_bytes: u64,
) -> Vec<Saving> {
    let mut alternatives = Vec::new();
    let mut offer = |setting: String, workload: Workload| {
        let bytes = total_bytes.saturating_sub(total(&parts(teacher, student, &workload)));
        if bytes > 0 {
            alternatives.push(Saving { setting, bytes });
        }
    };
    offer(
        "--checkpointing on".into(),
        Workload {
            checkpointing: true,
            ..*now
        },
    );
    offer(
        "--quantize nf4".into(),
        Workload {
            student_base: StudentBase::Nf4,
            ..*now
        },
    );
    offer(
        "--optimizer adamw8bit".into(),
        Workload {
            optimizer: OptimizerKind::AdamW8bit,
            ..*now
        },
    );
    for (setting, bytes) in [
        ("the teacher in f16 or bf16", now.teacher_weight_bytes),
        ("--dtype bf16", now.student_bytes),
    ] {
        if bytes > 2 {
            let teacher_side = setting.starts_with("the");
            let half = Workload {
                teacher_weight_bytes: if teacher_side {
                    2
                } else {
                    now.teacher_weight_bytes
                },
                student_bytes: if teacher_side { now.student_bytes } else { 2 },
                ..*now
            };
            offer(setting.into(), half);
        }
    }
    let halved = |value: u64| (value > 1).then_some(value / 2);
    if let Some(seq_len) = halved(now.seq_len) {
        offer(
            format!("--seq-len {seq_len} at the teacher"),
            Workload { seq_len, ..*now },
        );
    }
    if let Some(batch_size) = halved(now.batch_size) {
        offer(
            format!("--batch-size {batch_size} with --grad-accumulation 2"),
            Workload { batch_size, ..*now },
        );
    }
    if let Some(chunk_rows) = halved(now.chunk_rows) {
        offer(
            format!("--chunk-rows {chunk_rows}"),
            Workload { chunk_rows, ..*now },
        );
    }
    if let Some(lora_rank) = halved(now.lora_rank) {
        offer(
            format!("--lora-rank {lora_rank}"),
            Workload { lora_rank, ..*now },
        );
    }
    alternatives.sort_by_key(|saving| std::cmp::Reverse(saving.bytes));
    alternatives
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<10} {:<42} {:>10}", "process", "part", "MiB")?;
        for Part { name, owner, bytes } in &self.parts {
            writeln!(f, "{owner:<10} {name:<42} {:>10}", mib(*bytes))?;
        }
        writeln!(f)?;
        for (mode, bytes) in [
            ("resident: both at once", self.resident_bytes),
            ("swap: taking turns", self.swap_bytes),
            ("cached: the trainer alone", self.cached_bytes),
        ] {
            let verdict = match bytes <= self.vram_bytes {
                true => format!("fits, {} MiB free", mib(self.vram_bytes - bytes)),
                false => format!(
                    "does not fit, {} MiB too much",
                    mib(bytes - self.vram_bytes)
                ),
            };
            writeln!(
                f,
                "{mode:<53} {:>10}  of {} MiB: {verdict}",
                mib(bytes),
                mib(self.vram_bytes)
            )?;
        }
        writeln!(f, "\nwhat lowers it:")?;
        for Saving { setting, bytes } in &self.savings {
            writeln!(f, "  {setting:<51} {:>10}", format!("-{}", mib(*bytes)))?;
        }
        Ok(())
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::arithmetic::tests::{REFERENCE, qwen_1_5b, qwen_7b};

    #[test]
    fn the_table_says_what_fits_and_what_helps() {
        let wasteful = Workload {
            checkpointing: false,
            seq_len: 4096,
            ..REFERENCE
        };
        let report = PlanReport::new(&qwen_7b(), &qwen_1_5b(), &wasteful, 24_564);
        assert!(!report.fits_resident && report.savings[0].setting == "--checkpointing on");
        let text = report.to_string();
        assert!(
            text.contains("does not fit") && text.contains("--chunk-rows 64"),
            "{text}"
        );

        let report = PlanReport::new(&qwen_7b(), &qwen_1_5b(), &REFERENCE, 24_564);
        assert!(report.fits_resident);
        assert!(
            report.cached_bytes < report.swap_bytes && report.swap_bytes < report.resident_bytes
        );
    }
}
