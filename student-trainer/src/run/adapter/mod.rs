//! Provides the adapter as Hugging Face PEFT writes and reads it: `adapter_model.safetensors` and `adapter_config.json`.

mod config;
#[cfg(test)]
mod fixture_tests;
mod refusals;
#[cfg(test)]
mod tests;
mod unused;
mod weights;

pub use config::AdapterConfig;
pub use unused::{refuse_unused, warn_of_unused};
pub use weights::{load_adapter, save_adapter, save_projections};

pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(crate) const PROJECTION_FILE: &str = "hidden_projection.safetensors";
