//! Provides one side of a pair as its own tokenizer and chat template make it, and where the bytes of its fields went.

use std::ops::Range;

use distill_proto::{FieldRange, Link, View, limits::VIEW_BYTES_MAX};

use super::{
    Pair, Shared,
    ranges::{Parts, check},
    record::{Field, Fields, Place, Record},
};
use crate::{
    Error, Result, TokenizerFiles,
    chat::{Contents, render_with_contents},
    corpus::{document::Document, masked::Draft},
    json::{self, Json},
    tokenizer::offset,
};

/// Bytes of a link in a frame beside its field's name.
const LINK_BYTES: usize = 20;
/// Bytes of a view's own lengths.
const VIEW_SLACK_BYTES: usize = 64;

/// A record that was rendered and tokenised: an ordinary sequence, with the places of the record's fields.
pub struct Side<'t> {
    /// The rendered text, as far as `limit` tokens reach.
    pub text: String,
    /// T token ids.
    pub token_ids: Vec<u32>,
    /// Byte range of every token in `text`; empty for tokens without text of their own.
    pub byte_offsets: Vec<(u32, u32)>,
    /// T flags: the completion, or the assistant's turns, which are the labels of cross-entropy. The first never is one.
    /// None is where `limit` cut them all off.
    pub target_mask: Vec<bool>,
    /// T flags: what carries mass in transport. The labels, or all tokens but the first where prompts carry mass.
    pub mass_mask: Vec<bool>,
    /// Bytes of the answer: the completion, the last words of the assistant, or the text. `None` where a chat template does
    /// not write it as it stands, white space at its ends apart.
    pub answer: Option<Range<usize>>,
    /// The token that ends the answer without being a part of it: the end-of-sequence after a completion, or the special
    /// token that ends a turn. A shared span that ends where both answers end stands for it too.
    pub end_token: Option<usize>,
    /// Whether `limit` cut something off.
    pub is_truncated: bool,
    fields: Fields,
    /// Where messages are, in a conversation.
    contents: Option<Contents<'t>>,
}

/// Reads a side from JSON text: one record in any form of a corpus line, as [`View::record`] holds the student's. At most
/// `limit` tokens remain, and the end is cut off; running text is one sequence, not many windows.
///
/// # Errors
/// `Pair` where the record has no known form; what its chat template and the tokenizer say.
pub fn read_side<'t>(
    record: &str,
    prompts: bool,
    tokenizer: &'t TokenizerFiles,
    limit: usize,
) -> Result<Side<'t>> {
    let read = json::parse(record).and_then(|value| match value {
        Json::Object(fields) => Record::read(fields),
        other => Err(format!(
            "a record is an object, but this is {}",
            other.kind()
        )),
    });
    let record = read.map_err(Error::Pair)?;
    Side::read(tokenizer, record, prompts, limit)
}

impl<'t> Side<'t> {
    pub(crate) fn read(
        tokenizer: &'t TokenizerFiles,
        record: Record,
        prompts: bool,
        limit: usize,
    ) -> Result<Self> {
        let Record {
            document, fields, ..
        } = record;
        let (mut draft, contents) = match document {
            Document::Text(text) => (Draft::text(tokenizer, text)?, None),
            Document::Completion { prompt, completion } if completion.is_empty() => {
                (Draft::prompt(tokenizer, prompt)?, None)
            }
            Document::Completion { prompt, completion } => {
                (Draft::completion(tokenizer, prompt, &completion)?, None)
            }
            Document::Chat(dialogue) => {
                let (conversation, contents) = render_with_contents(tokenizer, dialogue)?;
                let draft = Draft::conversation(tokenizer, conversation)?;
                (draft, Some(contents))
            }
            Document::Pair(_) => {
                return Err(Error::Pair("a pair within a pair is not possible".into()));
            }
        };
        let is_truncated = draft.truncate(limit);
        let Draft {
            text,
            ids,
            ranges,
            mut mask,
        } = draft;
        if let Some(first) = mask.first_mut() {
            *first = false;
        }
        let mass = mask.iter().enumerate();
        let mass = mass.map(|(t, &target)| target || (prompts && t > 0));
        let mut side = Self {
            mass_mask: mass.collect(),
            text,
            token_ids: ids,
            byte_offsets: ranges,
            target_mask: mask,
            answer: None,
            end_token: None,
            is_truncated,
            fields,
            contents,
        };
        side.find_answer(tokenizer);
        Ok(side)
    }

    fn find_answer(&mut self, tokenizer: &TokenizerFiles) {
        let Some(answer) = self.fields.answer() else {
            return;
        };
        let words = answer.text.trim();
        let first = answer.text.len() - answer.text.trim_start().len();
        // Many templates trim it.
        let found = self.place(answer, &(0..answer.text.len()));
        let found = found.or_else(|| self.place(answer, &(first..first + words.len())));
        let Some(bytes) = found else {
            return;
        };
        let end = bytes.end;
        if end <= self.text.len() {
            let first = self
                .byte_offsets
                .partition_point(|range| (range.1 as usize) < end);
            let mut after = (first..).zip(self.byte_offsets.iter().skip(first));
            let after = after.find(|(_, range)| range.0 as usize >= end);
            self.end_token = after.map(|(token, _)| token).filter(|&token| {
                let id = self.token_ids.get(token).copied();
                let is_label = self.target_mask.get(token) == Some(&true);
                is_label && id.is_some_and(|id| tokenizer.is_special(id))
            });
        }
        self.answer = Some(self.clip(bytes));
    }

    /// The bytes of `text` that a range of a field became; what was cut off is left out, so that it may be shorter or empty.
    ///
    /// # Errors
    /// `Pair` where the record has no such field or bytes, or the chat template does not write them as they stand.
    pub fn locate(&self, range: &FieldRange) -> Result<Range<usize>> {
        check(range, &self.fields).map_err(Error::Pair)?;
        let field = self.fields.find(&range.field).map_err(Error::Pair)?;
        let bytes = range.start as usize..range.end as usize;
        let found = self.place(field, &bytes);
        let found = found.ok_or_else(|| {
            Error::Pair(format!(
                "the chat template does not write `{}` as it stands, so {range} cannot be found in the rendering; name a part \
                 that it leaves as it is",
                range.field
            ))
        })?;
        Ok(self.clip(found))
    }

    /// Where the whole rendering has these bytes of a field.
    fn place(&self, field: &Field, bytes: &Range<usize>) -> Option<Range<usize>> {
        match field.place {
            Place::Text(first) => Some(first + bytes.start..first + bytes.end),
            Place::Message { index, start } => {
                let bytes = start + bytes.start..start + bytes.end;
                self.contents.as_ref()?.find(index, &bytes)
            }
        }
    }

    fn clip(&self, bytes: Range<usize>) -> Range<usize> {
        let cut = self.text.len();
        bytes.start.min(cut)..bytes.end.min(cut)
    }

    /// As much of the end of two equal parts as the chat template writes as it stands: nobody asked for more.
    fn written_end(&self, (mut ours, mut theirs): Parts) -> Option<Parts> {
        let field = self.fields.find(&ours.field).ok()?;
        if let (Place::Message { index, start }, Some(contents)) = (field.place, &self.contents) {
            let bytes = start + ours.start as usize..start + ours.end as usize;
            let (written, _) = contents.find_end(index, &bytes)?;
            let lost = u32::try_from(written.start - bytes.start).ok()?;
            ours.start += lost;
            theirs.start += lost;
        }
        Some((ours, theirs))
    }

    /// Parts as links into the text, without those that were cut off; of equal ones both sides become shorter.
    fn links(&self, parts: Vec<Parts>, equal: bool) -> Result<Vec<Link>> {
        let mut links = Vec::with_capacity(parts.len());
        for (ours, mut theirs) in parts {
            let found = self.locate(&ours).map_err(of_teacher)?;
            if found.is_empty() {
                continue;
            }
            if equal {
                theirs.end = theirs.start + offset(found.len())?;
            }
            let teacher = (offset(found.start)?, offset(found.end)?);
            links.push(Link {
                teacher,
                student: theirs,
            });
        }
        Ok(links)
    }
}

impl Pair {
    /// The teacher's side, and the student's view of it.
    ///
    /// # Errors
    /// As [`read_side`], and `Pair` where the teacher's chat template changes what a range names.
    pub(crate) fn read(self, tokenizer: &TokenizerFiles, limit: usize) -> Result<(Side<'_>, View)> {
        let side = Side::read(tokenizer, self.teacher, self.prompts, limit)?;
        let shared = match self.shared {
            Shared::Given(parts) => parts,
            Shared::End(parts) => {
                let end = parts.and_then(|parts| side.written_end(parts));
                end.into_iter().collect()
            }
        };
        let view = View {
            record: self.student,
            prompts: self.prompts,
            shared: side.links(shared, true)?,
            links: side.links(self.links, false)?,
        };
        check_length(&view)?;
        Ok((side, view))
    }
}

/// Refuses a view that no frame takes, before a teacher has computed anything for it.
fn check_length(view: &View) -> Result<()> {
    let links = view.shared.iter().chain(&view.links);
    let links = links.map(|link| LINK_BYTES + link.student.field.len());
    let bytes = view.record.len() + links.sum::<usize>();
    if bytes + VIEW_SLACK_BYTES > VIEW_BYTES_MAX {
        return Err(Error::Pair(format!(
            "`student`: its record and links take {bytes} bytes, above the limit of {VIEW_BYTES_MAX} in one frame"
        )));
    }
    Ok(())
}

fn of_teacher(error: Error) -> Error {
    match error {
        Error::Pair(reason) => Error::Pair(format!("`teacher`: {reason}")),
        other => other,
    }
}
