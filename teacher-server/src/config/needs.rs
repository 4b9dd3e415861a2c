//! Provides what settings need beside themselves to have an effect.

use distill_program::settings::{Is, Need};

/// A server; `precompute` takes the same command line.
pub const SERVE: Need = &[("", Is::Command("serve"))];
/// A teacher: what a finished cache was captured with is in it.
pub const MODEL: Need = &[("model", Is::Set)];
/// Rows with draws.
pub const DRAWN: Need = &[
    ("estimator", Is::One(&["sampled"])),
    ("estimator", Is::One(&["head+sampled"])),
];
/// Rows with the largest logits.
pub const HEAD: Need = &[
    ("estimator", Is::One(&["top-k"])),
    ("estimator", Is::One(&["head+sampled"])),
];
/// A device that is lent.
pub const SWAP: Need = &[("vram_mode", Is::One(&["swap"]))];
/// Blocks that are kept.
pub const CACHE: Need = &[("cache", Is::Set)];
/// Blocks that end with the server.
pub const NO_CACHE: Need = &[("cache", Is::Unset)];
