//! Provides the named limits of what is read from a tokenizer directory and a corpus.

use std::time::Duration;

/// One tokenizer file; the largest in use (Gemma's) has 33 MB.
pub const TOKENIZER_FILE_BYTES_MAX: u64 = 256 << 20;
/// Any other JSON or template file of a model directory; tokenizer_config.json with its added tokens is the largest.
pub const CONFIG_FILE_BYTES_MAX: u64 = 16 << 20;
/// Objects in one part of tokenizer.json (normalizer, pre_tokenizer, post_processor, decoder); real ones have fewer than 60.
pub const TOKENIZER_PARTS_MAX: usize = 1024;
/// One regular expression of a tokenizer.
pub const REGEX_BYTES_MAX: usize = 1 << 16;
/// SentencePiece's table of replacements as base64; those in use have up to 700 kB.
pub const CHARSMAP_BYTES_MAX: usize = 8 << 20;
/// ByteLevel and Metaspace parts of one tokenizer; each can write four bytes for one.
pub const LONGER_PARTS_MAX: usize = 3;
/// Tokens that a post-processor puts around a text.
pub const TEMPLATE_TOKENS_MAX: usize = 4096;
/// Contents of all added tokens together.
pub const ADDED_BYTES_MAX: usize = 16 << 20;
/// How many times longer a normaliser may make a text, apart from [`NORMALIZED_SLACK_BYTES`]; NFKC reaches 11 for U+FDFA.
/// The library keeps 16 bytes beside every byte, so a text of 1 MiB takes 272 MiB at most.
pub const NORMALIZED_GROWTH_MAX: usize = 16;
/// What a normaliser may add to a short text.
pub const NORMALIZED_SLACK_BYTES: usize = 4096;
/// How many times longer the tokens of a vocabulary may become when they are written out.
pub const TOKEN_GROWTH_MAX: usize = 64;
/// Stack of the thread that a tokenizer is built and used on; patterns may nest 4096 deep.
pub const TOKENIZER_STACK_BYTES: usize = 64 << 20;
/// Until a tokenizer is built and has encoded a few short texts; the largest in use take 2 s.
pub const TOKENIZER_PATIENCE: Duration = Duration::from_secs(30);
/// Until a text is encoded, and once more for every MiB of it; it takes less than a second.
pub const ENCODE_PATIENCE: Duration = Duration::from_secs(30);
/// Text before a piece that is encoded with it again, for tokenizers that put something before every text.
pub const PIECE_OVERLAP_BYTES: usize = 4096;
/// Largest token id plus one, as in the frame format.
pub const VOCAB_SIZE_MAX: u32 = distill_proto::limits::VOCAB_SIZE_MAX;
/// One line of a corpus, and so the longest prompt, completion or conversation.
pub const LINE_BYTES_MAX: usize = distill_proto::limits::TEXT_BYTES_MAX;
/// Lists and objects within each other in a line.
pub const JSON_DEPTH_MAX: usize = 512;
/// Digits of an integer in a line; Python refuses longer ones too.
pub const JSON_INTEGER_DIGITS_MAX: usize = 4300;
/// Characters of a part of a pair that a message shows.
pub const SHOWN_CHARS_MAX: usize = 40;
/// Skipped rows that are named; the others are counted.
pub const SKIPPED_NAMED_MAX: usize = 10_000;
/// Of these the ones that a message to people lists.
pub const SKIPPED_SHOWN_MAX: usize = 20;
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
