//! Integration tests.
#![allow(clippy::print_stdout)]

mod ablate;
mod alignments;
mod book;
mod cache;
mod captures;
mod changed;
mod endings;
mod every_command;
mod fixtures_models;
mod fixtures_text;
mod fuzzed;
mod generate;
mod gguf;
mod harness;
mod hostile_client;
mod http2;
mod hub;
mod lease;
mod monitor;
mod objects;
mod outputs;
mod pairs;
mod pipeline;
mod push;
mod quickstart;
mod refusals;
mod remedies;
mod resume;
mod security;
mod settings_pages;
mod stays;
mod swapping;
mod teacher_answers;
mod terminal;
mod turns;
