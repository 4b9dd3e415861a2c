//! Provides the configuration: settings with their flags, the TOML file, and what `train` can be told.

mod foreign;
mod lora;
pub mod loss_keys;
pub mod needs;
mod preset;
pub mod resolve;
pub mod settings;
mod train;

pub use distill_model::ComputeDtype;
pub use distill_text::nearest;
pub use foreign::with_our_name;
pub(crate) use resolve::SETTINGS_BYTES_MAX;
pub use resolve::{Resolved, resolve, resolve_over, with_flags};
pub use settings::{Key, Kind, Settings};
pub use train::{BestMetric, Quantize, TrainConfig, Tune};
