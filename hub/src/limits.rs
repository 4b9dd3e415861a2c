//! Provides the named limits of what a server may send and of how long it may take.

use std::time::Duration;

/// One answer of the hub's API: a repository's file list.
pub const API_BYTES_MAX: u64 = 32 << 20;
/// `model.safetensors.index.json`.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;
/// The hub's token in a file.
pub const TOKEN_BYTES_MAX: u64 = 4096;
/// Certificates in a PEM file; a system's bundle has 250 kB.
pub const AUTHORITIES_BYTES_MAX: u64 = 16 << 20;
/// The commit that a branch stands for, in a file of the cache.
pub const COMMIT_BYTES_MAX: u64 = 1024;
/// Shards of one model.
pub const SHARDS_MAX: usize = 1024;
/// Chat templates beside the default one.
pub const TEMPLATES_MAX: usize = 64;
/// One file of a repository.
pub const FILE_BYTES_MAX: u64 = 1 << 40;
/// All files of one upload that the hub wants in the commit itself: they are in memory, and sent in one piece.
pub const COMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Parts of one file that is uploaded in several.
pub const PARTS_MAX: u64 = 10_000;
/// Bytes of a file from which the hub tells whether it is text.
pub const SAMPLE_BYTES: u64 = 512;
/// Redirects of one request.
pub const REDIRECTS_MAX: usize = 5;
/// Times that a question is asked before the hub counts as away.
pub const QUESTIONS_MAX: u32 = 3;
/// Requests for a file's bytes in a row that bring nothing new.
pub const ATTEMPTS_MAX: u32 = 5;
/// Bytes of a server's own words that are shown.
pub const SERVER_WORDS_MAX: usize = 200;

/// Until a connection stands.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Until a server begins to answer, and between two pieces of what it sends.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Until the hub has made a commit of what was uploaded, or one file of its parts.
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(300);
/// Between two looks at a lock that another process holds, or at whether to stop.
pub const POLL: Duration = Duration::from_millis(200);
