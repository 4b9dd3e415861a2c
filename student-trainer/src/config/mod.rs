//! Provides the configuration: the settings of `train`, what settings need, and the way from a command line to them.

mod foreign;
mod lora;
pub mod loss_keys;
pub mod needs;
mod preset;
mod renamed;
pub mod resolve;
mod train;

pub use distill_model::ComputeDtype;
pub use distill_program::settings::{
    FILE_BYTES_MAX, Key, Keys, Kind, Resolved, Settings, with_brief_help, with_flags,
};
pub use distill_text::nearest;
pub use foreign::with_our_name;
pub use resolve::{resolve, resolve_over};
pub use train::{BestMetric, Quantize, ShuffleTeacher, TrainConfig, Tune};
