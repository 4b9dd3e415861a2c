//! model

mod error;
mod frozen;
mod gemm;
mod linear;
mod lora;
mod nf4;
mod options;
mod parameter;
mod weights;

pub use error::{Error, Result};
pub use linear::{Linear, Weight};
pub use lora::Lora;
pub use nf4::{BLOCK_SIZE, NESTED_BLOCK_SIZE, Nf4Matrix, Rounding};
pub use options::{Base, LORA_RANK_MAX, LoadOptions, LoraConfig};
pub use parameter::Parameter;
pub use weights::{DIMENSIONS_MAX, HEADER_BYTES_MAX, INDEX_BYTES_MAX, SHARDS_MAX, Weights};
