//! Provides what a run leaves behind: the directory, the adapter, the metrics and the progress that people watch.

mod adapter;
mod card;
mod directory;
mod leftovers;
mod log;
mod metrics;
mod mirror;
mod progress;
mod teacher;
mod tensorboard;

pub use adapter::{
    AdapterConfig, load_adapter, refuse_unused, save_adapter, save_projections, warn_of_unused,
};
pub(crate) use adapter::{
    CONFIG_FILE as ADAPTER_CONFIG_FILE, PROJECTION_FILE, WEIGHTS_FILE as ADAPTER_WEIGHTS_FILE,
};
pub use card::Card;
pub(crate) use card::{CARD_BYTES_MAX, CARD_FILE, DISTILLED, base_of, front_matter};
pub use directory::RunDirectory;
pub(crate) use directory::{
    ADAPTER_DIRECTORY, ANSWERS_FILE, CONFIG_FILE, MEMORY_FILE, PLANS_FILE, PROJECTION_REPORT,
    SUMMARY_FILE, config_text, require_run, run_above, who_trains_in,
};
pub use distill_program::memory::Memory;
pub use log::{LogPosition, RunLog};
pub use metrics::{EvalMetrics, StepMetrics};
pub use mirror::kept;
pub use progress::{Progress, progress};
pub(crate) use teacher::TEACHER_FILE;
pub use teacher::TeacherRecord;
pub(crate) use tensorboard::TensorBoard;
