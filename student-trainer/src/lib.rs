//! student-trainer

pub mod client;
pub mod config;
mod error;
pub mod loss;
pub mod optimizer;
pub mod shutdown;

pub use error::{Error, Result};
