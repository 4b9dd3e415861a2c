//! Integration tests.

mod fixtures_models;
