/*! What both processes must read alike: tokenizer files, chat templates, corpora, windows and target masks.

```text
 model directory ──> tokenizer::TokenizerFiles ──┬── fingerprint() ──> handshake
                                                 ├── prompt: what is to be answered, as ids
                                                 ├── vocabulary(): the bytes behind every id
                                                 │
 .txt .md ─────────> corpus::lines ──┐           │
 .jsonl text ────────────────────────┼──> corpus::windows ──> Sequence { text, ids, byte offsets, targets } ──> Corpus
 .jsonl prompt+completion ───────────┤           │
 .jsonl messages ──> chat::template ─┘── chat::turns (what of the rendering is a target)
 .jsonl teacher+student ─> corpus::pairs (a view each: the teacher's Sequence carries the student's record)
 .parquet ─> the same forms by column
```

The teacher reads a corpus with these functions and puts the result into frames; the trainer's `eval --data FILE` reads
its held-out text with the same functions. There is no candle in this crate, and nothing in a corpus or a tokenizer
directory may make it panic: bad input is an error that names the file and the line or field.
*/
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::panic))]

mod error;
pub mod limits;

pub mod chat;
pub mod corpus;
pub mod tokenizer;

mod prompt;

mod foreign;
mod json;
mod nearest;
mod quietly;

#[cfg(test)]
mod testing;

pub use chat::ChatTemplateKwargs;
pub use corpus::pairs;
pub use corpus::{
    Corpus, Progress, Reads, Sequence, Skipped, Windowing, read_corpus, stream_corpus,
};
pub use error::{Error, Result};
pub use foreign::{FOREIGN, Foreign, foreign};
pub use nearest::nearest;
pub use prompt::{PromptReader, check_messages, check_prompt};
pub use tokenizer::{Encoded, TextStream, Token, TokenizerFiles, Vocabulary};
