/*! The memory plan: what each part of a distillation takes, before anything is loaded, and what fits.

```text
 two config.json ──> pair ──> counts: weights, adapters ──┬──> teacher ──┐
 settings of train ──> config ────────────────────────────┤              ├──> modes: peaks, what fits ──> report
                              layer, head: what a step adds ┴──> trainer ─┘         choices: what each setting buys
                                                                                    speed: an estimate, on a card
```

Weights, adapters and moments are exact. What a step adds is counted from the tensors that the code keeps, and checked
against measured peaks (docs/memory.md); what no formula gives (contexts, an allocator's holes) is a named constant.
*/

mod choices;
mod config;
mod counts;
mod head;
mod held;
mod layer;
mod modes;
mod packed;
mod pair;
mod part;
mod process;
mod report;
mod speed;
mod teacher;
mod trainer;

pub use choices::Choice;
pub use config::{Place, PlanConfig, PlanOptions};
pub use counts::{Counts, LinearShape};
pub use modes::{Mode, Processes, Sharing};
pub use packed::Packed;
pub use pair::{FourBit, Pair, Shape, Stored};
pub use part::{Part, Phase, Process};
pub use report::{Length, PlanReport};
pub use speed::Speed;

use std::path::Path;

use crate::{Result, config::TrainConfig, shutdown::Shutdown};

/// Reads both shapes and adds everything up.
///
/// # Errors
/// A `config.json` that cannot be read, or a setting that makes no sense.
pub fn run(config: &PlanConfig, shutdown: &Shutdown) -> Result<PlanReport> {
    config.validate()?;
    let train = &config.train;
    let pair = Pair::read(&train.teacher, &train.student, &train.preset, shutdown)?;
    PlanReport::new(&pair, config)
}

/// What is known of a run's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRows {
    /// Tokens of the longest sequence.
    pub seq_len: usize,
    /// Entries of a row at most; unset: the default.
    pub entries: Option<usize>,
    /// Coordinates of the state that comes with them, where one does.
    pub state_rank: Option<usize>,
}

/// What the process of a run takes, where it computes on the CPU or on a card; `student` is the directory of its base.
///
/// # Errors
/// As [`run`].
pub fn of_run(train: &TrainConfig, student: &Path, rows: RunRows, on_cpu: bool) -> Result<Process> {
    let mut config = PlanConfig {
        train: train.clone(),
        ..PlanConfig::default()
    };
    config.options.seq_len = rows.seq_len;
    config.options.entries = rows.entries.unwrap_or(config.options.entries);
    config.options.state_rank = rows.state_rank;
    config.train.device = if on_cpu { "cpu" } else { "cuda" }.to_owned();
    config.validate()?;
    let pair = Pair {
        teacher: None,
        student: Shape::open(student)?,
    };
    trainer::trainer(&pair, &config)
}
