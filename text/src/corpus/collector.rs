//! Provides the last step of reading a corpus: drafts are checked, counted, named and digested in order.

use std::collections::{HashMap, HashSet};

use distill_proto::{Fingerprint, View, fingerprint::FingerprintBuilder};

use super::{
    Progress, Reads, Sequence, Skipped, Summary, Windowing,
    document::Document,
    files::{CorpusFile, is_piece},
    masked::Draft,
    pairs::{Pair, read_side},
    windows::{TextWindows, check_length},
};
use crate::{Result, TokenizerFiles, chat::render_conversation};

/// Receives documents and drafts, and passes sequences on.
pub(super) struct Collector<'a> {
    tokenizer: &'a TokenizerFiles,
    windowing: &'a Windowing,
    report: &'a mut dyn FnMut(&Progress),
    sink: &'a mut dyn FnMut(Sequence) -> Result<()>,
    progress: Progress,
    documents: u64,
    targets: u64,
    skipped: Skipped,
    names: Names,
    digest: FingerprintBuilder,
}

impl<'a> Collector<'a> {
    pub fn new(
        tokenizer: &'a TokenizerFiles,
        windowing: &'a Windowing,
        files: &[CorpusFile],
        report: &'a mut dyn FnMut(&Progress),
        sink: &'a mut dyn FnMut(Sequence) -> Result<()>,
    ) -> Self {
        let total_bytes = files.iter().map(|file| file.bytes).sum();
        Self {
            tokenizer,
            windowing,
            report,
            sink,
            progress: Progress {
                total_bytes,
                ..Progress::default()
            },
            documents: 0,
            targets: 0,
            skipped: Skipped::default(),
            names: Names::default(),
            digest: FingerprintBuilder::new("corpus"),
        }
    }

    pub fn tokenizer(&self) -> &'a TokenizerFiles {
        self.tokenizer
    }

    pub fn windowing(&self) -> &'a Windowing {
        self.windowing
    }

    /// Counts a document that is read in pieces.
    pub fn count_document(&mut self) {
        self.documents += 1;
    }

    /// Notes that bytes were read, and reports.
    pub fn advance(&mut self, bytes: u64) {
        self.progress.bytes += bytes;
        (self.report)(&self.progress);
    }

    /// Turns a document into sequences, and counts it.
    pub fn document(&mut self, document: Document) -> Result<()> {
        self.cut(document)?;
        self.count_document();
        Ok(())
    }

    fn cut(&mut self, document: Document) -> Result<()> {
        let mut draft = match document {
            Document::Text(text) => return self.text(&text),
            Document::Completion { prompt, completion } => {
                Draft::completion(self.tokenizer, prompt, &completion)?
            }
            Document::Chat(dialogue) => {
                let conversation = render_conversation(self.tokenizer, dialogue)?;
                Draft::conversation(self.tokenizer, conversation)?
            }
            Document::Pair(pair) => return self.pair(*pair),
        };
        if draft.truncate(self.windowing.seq_len) {
            self.skipped.truncated += 1;
        }
        self.accept(draft)
    }

    fn pair(&mut self, pair: Pair) -> Result<()> {
        let limit = self.windowing.seq_len;
        let (side, view) = match self.windowing.reads {
            Reads::Teacher => {
                let (side, view) = pair.read(self.tokenizer, limit)?;
                (side, Some(view))
            }
            Reads::Student => (
                read_side(&pair.student, false, self.tokenizer, limit)?,
                None,
            ),
        };
        self.skipped.truncated += u64::from(side.is_truncated);
        let draft = Draft {
            text: side.text,
            ids: side.token_ids,
            ranges: side.byte_offsets,
            mask: side.mass_mask,
        };
        self.accept_with(draft, view)
    }

    /// Counts and names a row that cannot be used and goes on, where the reading is not strict.
    ///
    /// # Errors
    /// What is wrong with more than one row, or with one where the reading is strict.
    pub fn skip_refused(&mut self, outcome: Result<()>) -> Result<()> {
        match outcome {
            Err(error) if error.is_of_a_row() && !self.windowing.strict => {
                self.skipped.name(&error);
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn text(&mut self, text: &str) -> Result<()> {
        let mut windows = TextWindows::new(self.tokenizer, self.windowing);
        let mut piece = String::new();
        for line in text.split_inclusive('\n') {
            if is_piece(&piece, line) {
                windows.push(&std::mem::take(&mut piece), self)?;
            }
            piece += line;
        }
        windows.push(&piece, self)?;
        windows.finish(self)
    }

    /// Takes a draft that fits the window: drops it, or names it and passes it on.
    pub fn accept(&mut self, draft: Draft) -> Result<()> {
        self.accept_with(draft, None)
    }

    fn accept_with(&mut self, draft: Draft, view: Option<View>) -> Result<()> {
        let Draft {
            text,
            ids,
            ranges,
            mut mask,
        } = draft;
        if let Some(first) = mask.first_mut() {
            *first = false;
        }
        check_length(text.len())?;
        let targets = mask.iter().filter(|&&target| target).count();
        if ids.len() < self.windowing.min_tokens {
            self.skipped.too_short += 1;
            return Ok(());
        }
        if targets == 0 {
            self.skipped.without_target += 1;
            return Ok(());
        }
        let content = content_digest(&ids, &mask);
        let whole = match &view {
            Some(view) => pair_digest(content, view),
            None => content,
        };
        let digest = std::mem::take(&mut self.digest);
        self.digest = digest.field("sequence", &whole.0);
        let (id, occurrence) = self.names.next(whole);
        self.progress.sequences += 1;
        self.progress.tokens += ids.len() as u64;
        self.targets += targets as u64;
        (self.sink)(Sequence {
            id,
            // The n-th pair of equal sides keeps its content's name when both students' sides are edited.
            content_id: name(content, occurrence),
            text,
            token_ids: ids,
            byte_offsets: ranges,
            target_mask: mask,
            view,
        })
    }

    pub fn finish(self) -> Summary {
        Summary {
            fingerprint: self.digest.finish(),
            documents: self.documents,
            sequences: self.progress.sequences,
            tokens: self.progress.tokens,
            targets: self.targets,
            skipped: self.skipped,
        }
    }
}

fn content_digest(ids: &[u32], mask: &[bool]) -> Fingerprint {
    let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let mask: Vec<u8> = mask.iter().copied().map(u8::from).collect();
    FingerprintBuilder::new("sequence")
        .field("token_ids", &ids)
        .field("target_mask", &mask)
        .finish()
}

/// Digest of a pair: the teacher's side and the student's view of it.
fn pair_digest(teacher: Fingerprint, view: &View) -> Fingerprint {
    let builder = FingerprintBuilder::new("pair")
        .field("teacher", &teacher.0)
        .field("record", view.record.as_bytes())
        .field("prompts", &[u8::from(view.prompts)]);
    let lists = [("shared", &view.shared), ("links", &view.links)];
    let parts = lists
        .into_iter()
        .flat_map(|(name, links)| links.iter().map(move |link| (name, link)));
    let builder = parts.fold(builder, |builder, (name, link)| {
        let (first, end) = link.teacher;
        let bytes = [first, end, link.student.start, link.student.end];
        let bytes: Vec<u8> = bytes.iter().flat_map(|byte| byte.to_le_bytes()).collect();
        builder
            .field(name, &bytes)
            .field("field", link.student.field.as_bytes())
    });
    builder.finish()
}

/// Names of sequences: equal content gets another name at every occurrence.
#[derive(Default)]
struct Names {
    occurrences: HashMap<Fingerprint, u64>,
    used: HashSet<u64>,
}

impl Names {
    /// A name that none has yet, and the occurrence number in it.
    fn next(&mut self, content: Fingerprint) -> (u64, u64) {
        let next = self.occurrences.entry(content).or_default();
        loop {
            let occurrence = *next;
            *next += 1;
            let id = name(content, occurrence);
            // Two contents can share 64 bits; the next occurrence number tells them apart.
            if self.used.insert(id) {
                return (id, occurrence);
            }
        }
    }
}

fn name(content: Fingerprint, occurrence: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&content.0);
    hasher.update(&occurrence.to_le_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
