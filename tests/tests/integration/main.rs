//! Integration tests.

mod fixtures_models;
mod harness;
mod pipeline;
