//! Integration tests.

mod cache;
mod captures;
mod fixtures_models;
mod fixtures_text;
mod harness;
mod hub;
mod pipeline;
mod quickstart;
mod refusals;
mod resume;
mod security;
