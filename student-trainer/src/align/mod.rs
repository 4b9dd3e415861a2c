/*! Provides what a student needs that reads other tokens, or another text, than its teacher: the teacher's frames in the
student's ids, with the places where both speak of the same byte.

```text
 teacher's Vocabulary ──┐
 student's tokenizer ───┴──> VocabularyMap: teacher id ──> student id (equal bytes)
                                   │
 frame: text ──> tokens: the student's ids and targets ──> boundaries: pairs, places ──┐
        rows ──> rows: entries mapped, the rest left to the tail ──────────────────────┴──> train::Example
        view ──> pair: the student's own text, shared spans, joined positions ──────────────^
```

CE is the student's own. KL is taken where both tokenizations have a boundary at the same byte, and there the teacher's
probabilities are those of the student's tokens with the same bytes; what has no counterpart stays in the tail bucket,
because logsumexp is the teacher's own. OT aligns all N with all M positions.
*/

mod boundaries;
mod joined;
mod pair;
mod reader;
mod rows;
mod tokens;
mod vocabulary_map;

use std::{collections::HashSet, ops::Range};

use distill_proto::Frame;
use distill_text::{TokenizerFiles, Vocabulary};

use crate::{Result, loss::Targets, train::Example};
use boundaries::Boundaries;
pub use reader::{FrameReader, check_loss};
pub use vocabulary_map::VocabularyMap;

/// Turns frames of a teacher with another vocabulary into examples for the student.
pub struct Aligner<'a> {
    student: &'a TokenizerFiles,
    map: VocabularyMap,
    /// The teacher's end-of-text.
    teacher_eos: Option<u32>,
    /// The teacher's control tokens.
    teacher_special: HashSet<u32>,
    /// Tokens that the student takes.
    positions_max: usize,
}

impl<'a> Aligner<'a> {
    /// `positions_max` is the student's `max_position_embeddings`: what lies beyond is cut off.
    pub fn new(teacher: &Vocabulary, student: &'a TokenizerFiles, positions_max: usize) -> Self {
        Self {
            student,
            map: VocabularyMap::new(teacher, student),
            teacher_eos: teacher.eos_id,
            teacher_special: teacher
                .iter()
                .filter_map(|(id, token)| token.special.then_some(id))
                .collect(),
            positions_max,
        }
    }

    /// Which ids have a counterpart.
    pub fn map(&self) -> &VocabularyMap {
        &self.map
    }

    pub(super) fn is_teacher_special(&self, id: u32) -> bool {
        self.teacher_eos == Some(id) || self.teacher_special.contains(&id)
    }

    /// The frame in the student's tokens. `None` where the student has no target in it, or no row of the teacher has a
    /// token that the student knows.
    ///
    /// # Errors
    /// The student's tokenizer cannot represent the text.
    pub fn example(&self, frame: &Frame) -> Result<Option<Example>> {
        let ends = self.ends(frame);
        let mut tokens = tokens::encode(self.student, frame, &self.replaced(frame), ends)?;
        let cut = tokens.truncate(self.positions_max, frame.text.len());
        let target_positions = tokens.targets(frame, ends.is_some());

        let teacher_positions = frame.target_positions();
        let teacher = Boundaries::new(&frame.byte_offsets);
        let within = |j: usize| {
            let position = teacher_positions.get(j).copied();
            // What is predicted at the cut itself has no place in the student any more, an end of text without bytes
            // after an uncut text has.
            position.is_some_and(|t| {
                let start = teacher.start(t);
                start < cut || tokens.whole
            })
        };
        let counterpart = |id: u32| match ends {
            // Where a completion ends, the student's own end-of-text is the label, so the teacher's means that one.
            Some(eos) if self.teacher_eos == Some(id) => Some(eos),
            _ => self.map.student_id(id),
        };
        let teacher_rows = Targets::from_rows(&frame.rows);
        let (mut targets, kept) =
            rows::map(&teacher_rows, self.student.size(), within, counterpart);
        if target_positions.is_empty() || kept.is_empty() {
            return Ok(None);
        }
        let kept: Vec<usize> = kept
            .iter()
            .filter_map(|&j| teacher_positions.get(j).copied())
            .collect();
        let student = Boundaries::new(&tokens.ranges);
        let text_bytes = frame.text.len();
        targets.alignment = Some(student.align(&target_positions, &teacher, &kept, text_bytes));
        Ok(Some(Example {
            index: frame.index,
            token_ids: tokens.ids,
            target_positions,
            row_positions: kept,
            targets,
        }))
    }

    /// The student's end-of-text where the frame ends with the teacher's, written without text of its own.
    fn ends(&self, frame: &Frame) -> Option<u32> {
        let last = frame.token_ids.last().copied();
        let textless = frame.byte_offsets.last().is_some_and(|(a, b)| a == b);
        let ends = last.is_some() && last == self.teacher_eos && textless;
        self.student.eos_id().filter(|_| ends)
    }

    /// Where the text spells the teacher's end-of-text and the student has no token of that content: its own end-of-text
    /// goes there, not the letters of a foreign control token.
    fn replaced(&self, frame: &Frame) -> Vec<Range<usize>> {
        let tokens = frame.token_ids.iter().zip(&frame.byte_offsets);
        tokens
            .filter(|(id, (start, end))| {
                self.teacher_eos == Some(**id) && start < end && self.map.eos_by_role()
            })
            .map(|(_, &(start, end))| start as usize..end as usize)
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests;
