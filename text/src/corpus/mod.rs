//! Provides the reading of a corpus: files to documents to windows with target masks, in order, with one fingerprint.

mod collector;
mod document;
mod files;
mod guarded;
mod lines;
mod masked;
pub mod pairs;
mod parquet;
mod skipped;
mod windows;

use std::path::PathBuf;

use distill_proto::{Fingerprint, View};

use crate::{
    Error, Result, TokenizerFiles,
    limits::{CORPUS_TOKENS_MAX, SEQ_LEN_MAX, SEQ_LEN_MIN},
};
use collector::Collector;
pub use skipped::Skipped;

/// One window of text with everything that a teacher or an evaluation needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// First eight bytes of blake3 over token ids, mask, the student's view and an occurrence number; unique within a corpus.
    pub id: u64,
    /// The same without the view: names what the teacher reads, and so what it says. Equal to `id` where there is no view.
    pub content_id: u64,
    /// The window's text.
    pub text: String,
    /// T token ids.
    pub token_ids: Vec<u32>,
    /// Byte range of every token in `text`, `T` of them; empty for tokens without text of their own (a begin-of-text that
    /// the tokenizer adds, the end-of-sequence after a completion).
    pub byte_offsets: Vec<(u32, u32)>,
    /// T flags; true where the token is a target. The first never is, and at least one is.
    pub target_mask: Vec<bool>,
    /// What the student reads instead, where the record is a pair; all of the above is the teacher's then.
    pub view: Option<View>,
}

impl Sequence {
    /// Number of targets.
    pub fn targets(&self) -> usize {
        self.target_mask.iter().filter(|&&target| target).count()
    }
}

/// Whose side of a pair becomes a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// The teacher's, with the student's view beside it.
    Teacher,
    /// The student's alone.
    Student,
}

/// How documents become sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windowing {
    /// Longest sequence in tokens. Plain text is cut into windows of it; prompts with completions and conversations are
    /// truncated to it.
    pub seq_len: usize,
    /// Shorter sequences are left out; at least 2, as a target needs a token before it.
    pub min_tokens: usize,
    /// Whether a line or row that cannot be used ends the reading; else it is skipped, counted and named.
    pub strict: bool,
    /// Whose side of a pair is read.
    pub reads: Reads,
}

impl Windowing {
    /// Windows of `seq_len` tokens, nothing left out that has a target.
    pub fn new(seq_len: usize) -> Self {
        Self {
            seq_len,
            min_tokens: 2,
            strict: false,
            reads: Reads::Teacher,
        }
    }

    /// The same for a student: of a pair its own side is read, as an ordinary record.
    #[must_use]
    pub fn of_student(self) -> Self {
        Self {
            reads: Reads::Student,
            ..self
        }
    }

    /// The same, strict or not.
    #[must_use]
    pub fn strict(self, strict: bool) -> Self {
        Self { strict, ..self }
    }

    /// Checks the settings against the named limits and the tokenizer.
    ///
    /// # Errors
    /// `Windowing` with what contradicts what.
    pub fn validate(&self, tokenizer: &TokenizerFiles) -> Result<()> {
        let Self {
            seq_len,
            min_tokens,
            ..
        } = *self;
        let shortest = SEQ_LEN_MIN + tokenizer.prefix_ids().len();
        if !(shortest..=SEQ_LEN_MAX).contains(&seq_len) {
            let reason =
                format!("seq_len is {seq_len}; it must be from {shortest} to {SEQ_LEN_MAX}");
            return Err(Error::Windowing(reason));
        }
        if !(2..=seq_len).contains(&min_tokens) {
            let reason =
                format!("min_tokens is {min_tokens}; it must be from 2 to seq_len ({seq_len})");
            return Err(Error::Windowing(reason));
        }
        Ok(())
    }
}

/// How far the reading is; handed to the progress callback after every line or piece of text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read so far.
    pub bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
    /// Sequences made so far.
    pub sequences: u64,
    /// Tokens in them.
    pub tokens: u64,
}

/// What a corpus amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Digest over all sequences (ids, masks and views) in order.
    pub fingerprint: Fingerprint,
    /// Text files, lines of JSONL and rows of Parquet that were used.
    pub documents: u64,
    /// Sequences made.
    pub sequences: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Targets among the tokens.
    pub targets: u64,
    /// What was left out or shortened.
    pub skipped: Skipped,
}

/// A corpus in memory.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// All sequences in order of the files.
    pub sequences: Vec<Sequence>,
    /// Digest over all sequences (ids, masks and views) in order.
    pub fingerprint: Fingerprint,
    /// Text files, lines of JSONL and rows of Parquet that were used.
    pub documents: u64,
    /// Tokens in all sequences.
    pub tokens: u64,
    /// Targets among the tokens.
    pub targets: u64,
    /// What was left out or shortened.
    pub skipped: Skipped,
}

/// Reads a corpus into memory; see [`stream_corpus`].
///
/// # Errors
/// As [`stream_corpus`]; `EmptyCorpus` where no sequence is left; `CorpusTooLarge`.
pub fn read_corpus(
    paths: &[PathBuf],
    tokenizer: &TokenizerFiles,
    windowing: &Windowing,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Corpus> {
    let mut sequences = Vec::new();
    let mut tokens = 0;
    let summary = stream_corpus(paths, tokenizer, windowing, progress, &mut |sequence| {
        tokens += sequence.token_ids.len() as u64;
        if tokens > CORPUS_TOKENS_MAX {
            let limit = CORPUS_TOKENS_MAX;
            return Err(Error::CorpusTooLarge { limit });
        }
        sequences.push(sequence);
        Ok(())
    })?;
    if sequences.is_empty() {
        let skipped = &summary.skipped;
        let mut found = format!(
            "{} documents were read, {} sequences had no target, {} were shorter than {} tokens",
            summary.documents, skipped.without_target, skipped.too_short, windowing.min_tokens
        );
        if skipped.rows > 0 {
            found += &format!("; {skipped}");
        }
        return Err(Error::EmptyCorpus(found));
    }
    Ok(Corpus {
        sequences,
        fingerprint: summary.fingerprint,
        documents: summary.documents,
        tokens: summary.tokens,
        targets: summary.targets,
        skipped: summary.skipped,
    })
}

/// Reads a corpus and hands every sequence to `sink` in order, without holding more than one document or piece of text.
///
/// - `.txt`, `.md`: a file is one document, cut into windows of `seq_len` tokens; every token but the first of a window is
///   a target.
/// - `.jsonl`, `.ndjson`, one object a line: `messages` goes through the chat template, targets are the assistant's turns, or
///   what the template marks with `{% generation %}`; `conversations` (ShareGPT: `from` and `value`, with optional `system`)
///   likewise; `prompt` and `completion`: targets are the completion and an end-of-sequence token, or the assistant's turns of
///   the completion where both are lists of messages; `instruction` and `output` (Alpaca, with optional `input` and `system`)
///   as a conversation of two turns; `text` is a document as above. The first of these forms that a line has is taken, other
///   fields are ignored, and null counts as absent. Conversations may have `tools` (a list, or one as JSON text) and
///   `chat_template_kwargs`; `weight: 0`, `train: false` or `loss: false` in a message takes it out of the targets.
/// - a line with `teacher` and `student`, a record of one of these forms each, is a pair ([`pairs`]): the sequence is the
///   teacher's, with the student's view of it. `teacher_prompt` or `teacher_messages` beside a record make it one too. Running
///   text in a pair is one sequence.
/// - `.parquet`: the same forms by the names of columns; the sequences are those that the same rows give as JSONL. Nulls in
///   structs count as absent. Pages are read one after the other, row groups need not fit in memory.
/// - a directory: its files with these endings, in order of name.
///
/// A line or row that cannot be used (no JSON, no known form, refused by the template, turns that cannot be told apart) is
/// skipped, counted and named in [`Skipped`], unless `windowing` is strict.
///
/// # Errors
/// A file that cannot be read or is of no known kind; messages without a chat template; what `sink` says; where `windowing` is
/// strict, the first line or row that cannot be used, by name and with what was expected there.
pub fn stream_corpus(
    paths: &[PathBuf],
    tokenizer: &TokenizerFiles,
    windowing: &Windowing,
    progress: &mut dyn FnMut(&Progress),
    sink: &mut dyn FnMut(Sequence) -> Result<()>,
) -> Result<Summary> {
    windowing.validate(tokenizer)?;
    let files = files::expand(paths)?;
    let mut collector = Collector::new(tokenizer, windowing, &files, progress, sink);
    for file in &files {
        files::read(file, &mut collector)?;
    }
    Ok(collector.finish())
}

#[cfg(test)]
mod piece_tests;
#[cfg(test)]
mod refused_tests;
#[cfg(test)]
mod rows_tests;
#[cfg(test)]
mod tests;
