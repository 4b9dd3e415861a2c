//! x
pub mod cli;
pub mod config;
mod error;
pub mod selection;
pub use error::{Error, Result};
