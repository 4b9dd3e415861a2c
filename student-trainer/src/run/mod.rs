//! Provides what a run leaves behind: the directory, the adapter, the metrics and the progress that people watch.

mod adapter;
mod atomic;
mod directory;
mod lock;
mod log;
mod memory;
mod metrics;
mod progress;
mod tensorboard;

pub use adapter::{
    AdapterConfig, load_adapter, refuse_unused, save_adapter, save_projection, warn_of_unused,
};
pub(crate) use adapter::{
    CONFIG_FILE as ADAPTER_CONFIG_FILE, PROJECTION_FILE, WEIGHTS_FILE as ADAPTER_WEIGHTS_FILE,
};
pub use atomic::write_atomically;
pub use directory::RunDirectory;
pub(crate) use distill_program::output::readable_by_all;
pub use log::{LogPosition, RunLog};
pub(crate) use memory::MEMORY_FILE;
pub use memory::Memory;
pub use metrics::{EvalMetrics, StepMetrics};
pub use progress::Progress;
