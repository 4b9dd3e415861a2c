//! One decoder for every architecture that shares its shape, driven by `config.json`; frozen (dense, NF4
//! or the blocks of a GGUF file) with LoRA adapters for the student, plain for the teacher.
//!
//! ```text
//!  config.json ──> ModelConfig ─┐      (a GGUF file is both)
//!  *.safetensors ─> Weights ────┼─> Decoder ── hidden_states(ids) ───────────> [B, T, d]
//!  LoadOptions ─────────────────┘      │
//!     dtype, device, NF4, LoRA         └─ checkpointed(ids) ─> Tape
//!                                                               │ hidden()      [B, T, d]
//!              dL/dhidden (from the fused head and its losses) ─┤
//!                                                               └ backward() ─> Gradients, by name
//!
//!  ids ─> embedding ─> n x DecoderLayer ─> RmsNorm ─> hidden
//!                        x + Attention(RmsNorm(x)), RoPE angles in f32, Qwen3's heads through an RmsNorm first
//!                        x + Mlp(RmsNorm(x))
//! ```
//!
//! A layer is written once, forward and back, over operations that the CPU and a card each have (`ops`). candle's autograd computes
//! nothing here: it is what every gradient is tested against (`reference`). f32 on the CPU is the reference for values and bits.

mod config;
mod device;
mod device_memory;
mod device_pool;
mod error;
mod gguf;
mod options;
mod token_ids;
mod weights;

mod element;
mod linear;
mod lora;
mod nf4;
mod packed;
mod parameter;
pub mod simd;
mod token_matrix;

mod attention;
mod kv_cache;
mod layer;
mod mlp;
mod norm;
mod ops;
mod rope;

pub mod answers;
mod checkpoint;
mod decoder;
mod generate;
mod gradients;

#[cfg(test)]
mod families_tests;
#[doc(hidden)]
pub mod reference;
#[cfg(test)]
mod test_support;
#[doc(hidden)]
pub mod testing;
pub mod threads;

pub use checkpoint::{Checkpointing, Tape};
pub use config::{Architecture, CONFIG_BYTES_MAX, Experts, ModelConfig, RopeScaling};
pub use decoder::Decoder;
pub use device::{ComputeDtype, DeviceChoice, backend};
pub use device_memory::{
    DeviceMemory, Room, check_weights_fit, explained, free_and_total, weight_bytes,
};
pub use device_pool::hand_back;
pub use element::{Element, Lent, lend};
pub use error::{Error, Result};
pub use generate::{Finish, Generator, Options, Prompt, Sampling, Written, uniform};
pub use gguf::{Gguf, GgufFile, GgufQuant, GgufTokenizer, is_gguf};
pub use gradients::{GradientCheck, Gradients};
pub use kv_cache::{KvCache, Piece};
pub use layer::load_parameter;
pub use linear::{Linear, Weight, dequantized};
pub use lora::{
    LORA_RANK_MAX, LORA_TARGETS, Lora, LoraConfig, LoraLayers, LoraModules, LoraPattern, Unused,
};
pub use nf4::{
    BLOCK_SIZE, BLOCK_SIZES, NESTED_BLOCK_SIZE, Nf4Matrix, QuantOptions, QuantType, Rounding,
    StoredTensor, double_quantized_bytes,
};
pub use ops::{
    cpu::tile_bytes,
    head::{HEAD_TILE_ROWS, head_gradient_dtype, head_rows, head_rows_backward, head_tiles},
    squares::Squares,
};
pub use options::{Base, LoadOptions};
pub use packed::{PackedMatrix, packed_bytes, strip_elements};
pub use parameter::Parameter;
pub use token_matrix::TokenMatrix;
pub use weights::{DIMENSIONS_MAX, HEADER_BYTES_MAX, INDEX_BYTES_MAX, SHARDS_MAX, Weights};
