//! Integration tests.

mod cache;
mod captures;
mod fixtures_models;
mod fixtures_text;
mod gguf;
mod harness;
mod hub;
mod lease;
mod pipeline;
mod quickstart;
mod refusals;
mod remedies;
mod resume;
mod security;
mod stays;
mod swapping;
