//! Integration tests.

mod cache;
mod captures;
mod fixtures_models;
mod fixtures_text;
mod fuzzed;
mod gguf;
mod harness;
mod hub;
mod lease;
mod pipeline;
mod quickstart;
mod refusals;
mod resume;
mod security;
mod stays;
mod swapping;
