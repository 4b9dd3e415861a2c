//! Helpers for the integration tests.

pub mod fixtures;
pub mod fuzz;
pub mod hashed_model;
pub mod reference;
pub mod storage;
