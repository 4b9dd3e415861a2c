//! Provides the named limits that every length from a peer or a file is checked against before allocation.

/// Tokens in one sequence.
pub const SEQUENCE_TOKENS_MAX: usize = 1 << 16;
/// Kept entries a row (K). A dense row is a `K = V` row, so this is the largest vocabulary too.
pub const KEPT_ENTRIES_MAX: usize = 1 << 20;
/// Token ids.
pub const VOCAB_SIZE_MAX: u32 = 1 << 20;
/// Coordinates of one layer in a row's `state`.
pub const STATE_RANK_MAX: usize = 1 << 15;
/// Layers whose outputs a row holds.
pub const STATE_LAYERS_MAX: usize = 16;
/// Stored temperatures.
pub const TEMPERATURES_MAX: usize = 16;
/// Text of one frame.
pub const TEXT_BYTES_MAX: usize = 16 << 20;
/// The student's view in one frame.
pub const VIEW_BYTES_MAX: usize = 16 << 20;
/// Shared spans, and links, of one view.
pub const LINKS_MAX: usize = 1 << 16;
/// The name of a field of a record.
pub const FIELD_NAME_BYTES_MAX: usize = 256;
/// One frame, compressed.
pub const FRAME_BYTES_MAX: usize = 256 << 20;
/// Kept entries of all rows of one frame.
pub const FRAME_ENTRIES_MAX: usize = 1 << 28;
/// One frame's planes, decompressed.
pub const FRAME_DECOMPRESSED_BYTES_MAX: usize = 1 << 30;
/// One gRPC message; GetBasis chunks aim at about 2 MiB, one block may be larger.
pub const MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX + (1 << 20);
/// GetBasis chunk.
pub const BASIS_CHUNK_BYTES: usize = 2 << 20;
/// Bytes of one token in GetVocabulary.
pub const TOKEN_BYTES_MAX: usize = 1 << 16;
/// Tokens in one GetVocabulary chunk.
pub const VOCABULARY_CHUNK_TOKENS: usize = 1 << 14;
/// GetVocabulary chunk; the token that reaches it is the chunk's last.
pub const VOCABULARY_CHUNK_BYTES: usize = 1 << 20;
/// Bytes of all tokens of one vocabulary.
pub const VOCABULARY_BYTES_MAX: usize = 1 << 28;
/// Frames of one shard.
pub const SHARD_FRAMES_MAX: usize = 1 << 22;
/// One shard file.
pub const SHARD_BYTES_MAX: u64 = 1 << 40;
/// Sequences of one plan.
pub const PLAN_SEQUENCES_MAX: u64 = 1 << 32;
