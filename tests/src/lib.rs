//! Helpers for the integration tests.

pub mod fixtures;
pub mod hashed_model;
pub mod reference;
