//! model

mod error;
mod frozen;
mod linear;
mod lora;
mod options;
mod parameter;
mod weights;

pub use error::{Error, Result};
pub use linear::{Linear, Weight};
pub use lora::Lora;
pub use options::{Base, LORA_RANK_MAX, LoadOptions, LoraConfig};
pub use parameter::Parameter;
pub use weights::{DIMENSIONS_MAX, HEADER_BYTES_MAX, INDEX_BYTES_MAX, SHARDS_MAX, Weights};
