//! Provides the named limits of what is read from a tokenizer directory and a corpus.

/// One tokenizer file; the largest in use (Gemma's) has 33 MB.
pub const TOKENIZER_FILE_BYTES_MAX: u64 = 256 << 20;
/// Largest token id plus one, as in the frame format.
pub const VOCAB_SIZE_MAX: u32 = distill_proto::limits::VOCAB_SIZE_MAX as u32;
/// One line of a corpus, and so the longest prompt, completion or conversation.
pub const LINE_BYTES_MAX: usize = distill_proto::limits::TEXT_BYTES_MAX;
/// Lists and objects within each other in a line.
pub const JSON_DEPTH_MAX: usize = 512;
/// Digits of an integer in a line; Python refuses longer ones too.
pub const JSON_INTEGER_DIGITS_MAX: usize = 4300;
/// Skipped rows that are named; the others are counted.
pub const SKIPPED_NAMED_MAX: usize = 20;
/// Characters of a skipped row's name and reason.
pub const SKIPPED_REASON_CHARS_MAX: usize = 400;
/// Metadata of a Parquet file: its schema and where every column of every row group lies.
pub const PARQUET_METADATA_BYTES_MAX: u64 = 64 << 20;
/// Lists and structs within each other in a Parquet column; tool calls of messages take six.
pub const PARQUET_DEPTH_MAX: usize = 32;
/// Text that is tokenised in one call; a longer document is cut at line breaks first.
pub const PIECE_BYTES: usize = 1 << 20;
/// Turns of one conversation.
pub const MESSAGES_MAX: usize = 512;
/// Rendered conversation.
pub const RENDERING_BYTES_MAX: usize = distill_proto::limits::TEXT_BYTES_MAX;
/// A chat template; the longest in use have 30 KB.
pub const TEMPLATE_BYTES_MAX: usize = 1 << 20;
/// Tags of a chat template; the longest in use have some hundreds.
pub const TEMPLATE_TAGS_MAX: usize = 10_000;
/// Operators and brackets of one tag of a chat template: the tree of an expression is as deep, and read by recursion.
pub const TEMPLATE_OPERATORS_MAX: usize = 500;
/// Work of one rendering, in minijinja's fuel: about one unit an instruction or 64 bytes of what is made, so this bounds the
/// memory of a rendering to about 512 MiB too.
pub const TEMPLATE_FUEL: u64 = 8 << 20;
/// Lists and objects within each other in what a template's variables hold or print.
pub const VALUE_DEPTH_MAX: usize = 200;
/// Entries of lists and objects that are printed as one text.
pub const VALUE_ITEMS_MAX: usize = 1 << 20;
/// Texts and entries of one list or object that a template's variable holds, a part counted as often as it is there.
pub const VALUE_BYTES_MAX: usize = 4 * RENDERING_BYTES_MAX;
/// Shortest permitted `seq_len`; below it a window may not hold one character of a byte-level tokenizer.
pub const SEQ_LEN_MIN: usize = 8;
/// Longest permitted `seq_len`, as in the frame format.
pub const SEQ_LEN_MAX: usize = distill_proto::limits::SEQUENCE_TOKENS_MAX;
/// Tokens of a corpus that is held in memory.
pub const CORPUS_TOKENS_MAX: u64 = 1 << 32;
