/*! The memory plan: what each part of a distillation takes on one card, before anything is loaded.

```text
 two config.json ──> arithmetic: bytes of every part ──> report: table, does it fit, which setting lowers it
```
*/

pub mod arithmetic;
mod report;

use std::path::{Path, PathBuf};

use distill_hub::Wanted;
use distill_model::ModelConfig;

use crate::{
    Error, Result,
    config::{Quantize, loss_keys::loss_keys, settings::settings},
    loss::LossConfig,
    optimizer::OptimizerKind,
    shutdown::Shutdown,
    student,
};
use arithmetic::{StudentBase, Workload};
pub use report::PlanReport;

settings! {
    /// Everything `plan` can be told.
    pub struct PlanConfig {
        /// The teacher's directory or its config.json, or its name on the hub: org/name or org/name@revision.
        teacher: PathBuf = PathBuf::new(),
        /// The student's directory or its config.json, or its name on the hub.
        student: PathBuf = PathBuf::new(),
        /// Tokens of a sequence.
        seq_len: usize = 512,
        /// Sequences in one forward pass.
        batch_size: usize = 1,
        /// LoRA rank r, on every linear.
        lora_rank: usize = 16,
        /// How AdamW's moments are kept: adamw (f32) or adamw8bit.
        optimizer: OptimizerKind = OptimizerKind::AdamW,
        /// Recompute each layer in the backward pass instead of keeping its activations.
        checkpointing: bool = true,
        /// How the student's linears are held: nf4 or none.
        quantize: Quantize = Quantize::Nf4,
        /// Bytes of a teacher's weight: 2 for f16 and bf16, 4 for f32.
        teacher_weight_bytes: usize = 2,
        /// Bytes of a student's activation: 2 for bf16, 4 for f32.
        student_bytes: usize = 2,
        /// Memory of the card in MiB; an RTX 4090 has 24564.
        vram_mib: u64 = 24_564,
        /// Settings to start from: default, literal or reference-24gb.
        preset: String = "default".to_owned(),
        /// Print a JSON object.
        json: bool = false,
    }
    sections {
        /// The loss.
        loss: LossConfig = loss_keys,
    }
}

/// Reads both shapes and adds everything up.
///
/// # Errors
/// A `config.json` that cannot be read, or a setting that makes no sense.
pub fn run(config: &PlanConfig, shutdown: &Shutdown) -> Result<PlanReport> {
    let sizes = [
        ("seq_len", config.seq_len),
        ("batch_size", config.batch_size),
        ("lora_rank", config.lora_rank),
        ("teacher_weight_bytes", config.teacher_weight_bytes),
        ("student_bytes", config.student_bytes),
    ];
    if let Some((name, _)) = sizes.iter().find(|(_, size)| !(1..=1 << 20).contains(size)) {
        return Err(Error::Config(format!("{name}: must lie in 1..=1048576")));
    }
    config.loss.validate()?;
    let teacher = read_shape("teacher", &config.teacher, shutdown)?;
    let student = read_shape("student", &config.student, shutdown)?;
    Ok(PlanReport::new(
        &teacher,
        &student,
        &workload(config, &teacher),
        config.vram_mib,
    ))
}

fn workload(config: &PlanConfig, teacher: &ModelConfig) -> Workload {
    Workload {
        seq_len: config.seq_len as u64,
        batch_size: config.batch_size as u64,
        lora_rank: config.lora_rank as u64,
        optimizer: config.optimizer,
        checkpointing: config.checkpointing,
        teacher_weight_bytes: config.teacher_weight_bytes as u64,
        student_bytes: config.student_bytes as u64,
        student_base: match config.quantize {
            Quantize::Nf4 => StudentBase::Nf4,
            Quantize::None => StudentBase::Dense,
        },
        chunk_rows: config.loss.chunk_rows as u64,
        state_rank: config
            .loss
            .needs_state()
            .then_some(teacher.hidden_size as u64),
        transport: config.loss.ot_weight > 0.0,
    }
}

fn read_shape(whose: &str, path: &Path, shutdown: &Shutdown) -> Result<ModelConfig> {
    if path.as_os_str().is_empty() {
        return Err(Error::Config(format!(
            "{whose}: name a directory or config.json with --{whose}"
        )));
    }
    let path = student::located(path, Wanted::Config, shutdown)?;
    if path.is_dir() {
        return Ok(ModelConfig::load(&path)?);
    }
    let json = std::fs::read(&path).map_err(Error::io("read", &path))?;
    Ok(ModelConfig::parse(&json, &path)?)
}
