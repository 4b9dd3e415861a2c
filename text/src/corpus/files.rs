//! Provides the walk over corpus files: which there are, of which kind, and their reading line by line.

use std::{
    io::BufReader,
    path::{Path, PathBuf},
};

use distill_objects::{fetched, is_remote};
use distill_program::{FileError, files as disk};

use super::{
    collector::Collector, document::Document, lines::Lines, parquet, windows::TextWindows,
};
use crate::{
    Error, Result,
    limits::{LINE_BYTES_MAX, PIECE_BYTES},
};

/// Kinds of corpus files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One document.
    Text,
    /// One document a line.
    Jsonl,
    /// One document a row.
    Parquet,
}

/// A file of the corpus.
pub(super) struct CorpusFile {
    path: PathBuf,
    kind: Kind,
    pub bytes: u64,
}

/// The files of `paths`, directories replaced by what they hold; what lies in object storage is fetched.
pub(super) fn expand(paths: &[PathBuf]) -> Result<Vec<CorpusFile>> {
    let mut files = Vec::new();
    for path in paths {
        let path = match is_remote(path) {
            true => &fetched(path, &|| false)?,
            false => path,
        };
        if !path.is_dir() {
            files.push(corpus_file(
                path,
                kind_of(path).ok_or_else(|| unknown(path))?,
            )?);
            continue;
        }
        let entries = disk::list(path)?;
        let found = files.len();
        // A pipe among them is refused, not passed over.
        for entry in entries.iter().filter(|entry| !entry.is_dir()) {
            if let Some(kind) = kind_of(entry) {
                files.push(corpus_file(entry, kind)?);
            }
        }
        if files.len() == found {
            let reason = "the directory has no .txt, .md, .jsonl or .parquet file".to_owned();
            return Err(Error::CorpusFile {
                path: path.clone(),
                reason,
            });
        }
    }
    if files.is_empty() {
        return Err(Error::EmptyCorpus("no file was named".to_owned()));
    }
    Ok(files)
}

fn corpus_file(path: &Path, kind: Kind) -> Result<CorpusFile> {
    // Opened now as well: what cannot be read is told before hours go into the files before it.
    let found = disk::open(path)?.metadata();
    let bytes = found.map_err(FileError::at("read", path))?.len();
    Ok(CorpusFile {
        path: path.to_owned(),
        kind,
        bytes,
    })
}

fn kind_of(path: &Path) -> Option<Kind> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    match ending.as_str() {
        "txt" | "md" => Some(Kind::Text),
        "jsonl" | "ndjson" => Some(Kind::Jsonl),
        "parquet" => Some(Kind::Parquet),
        _ => None,
    }
}

fn unknown(path: &Path) -> Error {
    let reason = "a corpus file ends in .txt or .md (plain text), in .jsonl (one JSON object a line) or in .parquet";
    Error::CorpusFile {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Reads one file into the collector.
pub(super) fn read(file: &CorpusFile, collector: &mut Collector<'_>) -> Result<()> {
    let lines = || -> Result<Lines<'_>> {
        let opened = BufReader::new(disk::open(&file.path)?);
        Ok(Lines::new(opened, &file.path))
    };
    match file.kind {
        Kind::Text => read_text(&mut lines()?, collector),
        Kind::Jsonl => read_jsonl(&mut lines()?, collector),
        Kind::Parquet => parquet::read(&file.path, file.bytes, collector),
    }
}

fn read_jsonl(lines: &mut Lines<'_>, collector: &mut Collector<'_>) -> Result<()> {
    while let Some(line) = lines.next(LINE_BYTES_MAX)? {
        let outcome = match line {
            Ok(line) if line.trim().is_empty() => Ok(()),
            Ok(line) => match Document::parse(line) {
                Ok(document) => collector.document(document).map_err(|e| lines.locate(e)),
                Err(reason) => Err(lines.error(reason)),
            },
            Err(error) => Err(error),
        };
        collector.skip_refused(outcome)?;
        collector.advance(lines.consumed());
    }
    Ok(())
}

fn read_text(lines: &mut Lines<'_>, collector: &mut Collector<'_>) -> Result<()> {
    collector.count_document();
    let mut windows = TextWindows::new(collector.tokenizer(), collector.windowing());
    let mut piece = String::new();
    while let Some(line) = lines.next(LINE_BYTES_MAX)? {
        let line = line?;
        let full = is_piece(&piece, line);
        let line = line.to_owned();
        if full {
            let outcome = windows.push(&piece, collector);
            outcome.map_err(|e| lines.locate(e))?;
            piece.clear();
        }
        piece += &line;
        collector.advance(lines.consumed());
    }
    let outcome = windows
        .push(&piece, collector)
        .and_then(|()| windows.finish(collector));
    outcome.map_err(|e| lines.locate(e))
}

/// Whether `piece` is long enough to be tokenised without `next`, a line that tokens do not join to it.
///
/// The pre-tokenizers in use never join a line break with what follows it, white space excepted, so a cut before a line
/// that begins with another character does not change a token. White space alone must not make a piece grow for ever.
pub(super) fn is_piece(piece: &str, next: &str) -> bool {
    let clean = next.chars().next().is_some_and(|c| !c.is_whitespace());
    piece.len() >= PIECE_BYTES && (clean || piece.len() >= 4 * PIECE_BYTES)
}
