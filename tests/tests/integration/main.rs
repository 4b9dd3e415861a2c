//! Integration tests.

mod fixtures_models;
mod fixtures_text;
