/*! Provides the example of a pair: the student's own text, with the teacher's rows of another one beside it.

```text
 view.record ── read_side ──> the student's tokens, labels, mass ──┐
 view.shared ── both sides' bytes ──> boundaries that agree: pairs ├──> Example
 view.links, equal numbers and names ──> joined positions ─────────┤
 frame: rows ── rows::map, if the vocabularies differ ─────────────┘
```

KL is taken where both sides have a boundary at the same byte of a shared span; the teacher's context is its own there.
*/

use std::{collections::HashMap, ops::Range};

use distill_proto::{Frame, Link, View};
use distill_text::pairs::{Side, read_side};

use super::{
    boundaries::Boundaries,
    joined::{Joins, Positions},
    reader::FrameReader,
};
use crate::{
    Error, Result,
    loss::{Alignment, Targets},
    train::{Example, evenly},
};

/// The frame of a pair as an example. `None` where nothing of its side that carries mass was left when it was cut, or no
/// row of the teacher has a token that the student knows.
///
/// # Errors
/// A record that this student's tokenizer or chat template cannot take, with the sequence.
pub(super) fn example(
    frame: &Frame,
    view: &View,
    reader: &FrameReader<'_>,
) -> Result<Option<Example>> {
    let of_sequence = |error: distill_text::Error| {
        Error::Config(format!(
            "the student's side of sequence {} (id {:016x}): {error}",
            frame.index, frame.sequence_id
        ))
    };
    let limit = reader.pair_tokens_max;
    let side = read_side(&view.record, view.prompts, reader.student, limit).map_err(of_sequence)?;
    if side.is_truncated {
        reader.tell_cut(frame);
    }
    let located = |links: &[Link]| -> Result<Vec<Parts>> {
        let place = |link: &Link| {
            let student = side.locate(&link.student).map_err(of_sequence)?;
            Ok((bytes(student)?, link.teacher.0..link.teacher.1))
        };
        links.iter().map(place).collect()
    };
    let (shared, links) = (located(&view.shared)?, located(&view.links)?);
    let (tokens, all_rows) = (positions(&side.mass_mask), frame.target_positions());
    let is_labelled = |&t: &usize| side.target_mask.get(t) == Some(&true);
    let places = Places {
        side: &side,
        frame,
        tokens: &tokens,
        rows: &all_rows,
    };
    let (pairs, ends) = places.pairs(&shared, |id| reader.is_teacher_end(id));
    let (mut targets, kept) = reader.rows(Targets::from_rows(&frame.rows), ends);
    if tokens.is_empty() || kept.is_empty() {
        return Ok(None);
    }
    let rows: Vec<usize> = kept
        .iter()
        .filter_map(|&j| all_rows.get(j).copied())
        .collect();
    let joins = Joins {
        student: Positions {
            text: &side.text,
            ranges: &side.byte_offsets,
            tokens: &tokens,
        },
        teacher: Positions {
            text: &frame.text,
            ranges: &frame.byte_offsets,
            tokens: &rows,
        },
    };
    let kept_at = |j: usize| kept.binary_search(&j).ok();
    targets.alignment = Some(Alignment {
        pairs: pairs.into_iter().map(|j| j.and_then(kept_at)).collect(),
        student_places: evenly(tokens.len()),
        teacher_places: evenly(rows.len()),
        labelled: tokens.iter().map(is_labelled).collect(),
        links: joins.by_links(&links),
        equal: joins.by_words(),
        is_pair: true,
    });
    Ok(Some(Example {
        index: frame.index,
        token_ids: side.token_ids,
        target_positions: tokens,
        row_positions: rows,
        targets,
    }))
}

/// Bytes of the student's text and bytes of the teacher's.
type Parts = (Range<u32>, Range<u32>);

fn positions(mask: &[bool]) -> Vec<usize> {
    let flags = mask.iter().enumerate();
    flags.filter_map(|(t, &is)| is.then_some(t)).collect()
}

fn bytes(range: Range<usize>) -> Result<Range<u32>> {
    match (u32::try_from(range.start), u32::try_from(range.end)) {
        (Ok(start), Ok(end)) => Ok(start..end),
        _ => Err(Error::Stream("a text beyond 4 GiB".into())),
    }
}

/// Where both sides' tokens are.
struct Places<'a> {
    side: &'a Side<'a>,
    frame: &'a Frame,
    /// The student's tokens that carry mass.
    tokens: &'a [usize],
    /// The teacher's tokens that its rows speak of.
    rows: &'a [usize],
}

/// The ids that end an answer: the teacher's, and the student's in its place.
pub(super) type Ends = (u32, u32);

impl Places<'_> {
    /// The teacher's row beside each of the student's tokens: both begin at the same byte of a shared span, and everything
    /// before them ends there. Where a span ends with both answers, what ends these is a pair as well, and named.
    fn pairs(
        &self,
        shared: &[Parts],
        is_teacher_end: impl Fn(u32) -> bool,
    ) -> (Vec<Option<usize>>, Option<Ends>) {
        let student = Boundaries::new(&self.side.byte_offsets);
        let teacher = Boundaries::new(&self.frame.byte_offsets);
        let mut row_at = HashMap::with_capacity(self.rows.len());
        for (j, &t) in self.rows.iter().enumerate() {
            if let Some(byte) = teacher.clean_start(t) {
                row_at.entry(byte).or_insert((j, t));
            }
        }
        let mut pairs = vec![None; self.tokens.len()];
        let mut ends = None;
        for (ours, theirs) in shared {
            let first = self
                .tokens
                .partition_point(|&t| student.start(t) < ours.start as usize);
            for (&t, pair) in self.tokens.iter().zip(&mut pairs).skip(first) {
                let Some(byte) = student.clean_start(t) else {
                    continue;
                };
                if byte > ours.end {
                    break;
                }
                // A span of the student's that was cut off is shorter than the teacher's.
                let beside = theirs.start.saturating_add(byte.saturating_sub(ours.start));
                let Some(&(j, position)) = row_at.get(&beside) else {
                    continue;
                };
                let id = |ids: &[u32], t: usize| ids.get(t).copied().unwrap_or_default();
                let teacher_id = id(&self.frame.token_ids, position);
                if byte < ours.end {
                    *pair = Some(j);
                } else if self.side.end_token == Some(t)
                    && beside == theirs.end
                    && is_teacher_end(teacher_id)
                {
                    *pair = Some(j);
                    ends = Some((teacher_id, id(&self.side.token_ids, t)));
                }
            }
        }
        (pairs, ends)
    }
}

#[cfg(test)]
#[path = "pair_tests.rs"]
mod tests;
