//! losses
pub mod config;
mod error;
pub mod reference;
mod simd;
pub mod sinkhorn;
#[cfg(test)]
mod testing;
pub use config::*;
pub use error::*;
