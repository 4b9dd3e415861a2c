//! Provides what `inspect` shows of a frame whose record gives the student a view of its own.

use distill_proto::{Frame, Link, View};
use distill_text::pairs;
use serde::Serialize;

/// Characters of a text that are shown.
const SHOWN_CHARS_MAX: usize = 120;
/// Shared spans, and links, that are shown.
const SHOWN_LINKS_MAX: usize = 8;

/// The student's view in one frame, shortened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PairShown {
    /// The sequence, as 16 hex digits.
    pub sequence_id: String,
    /// Place in the plan's order.
    pub index: u64,
    /// What the teacher reads.
    pub teacher: String,
    /// The student's record, JSON.
    pub student: String,
    /// Whether prompts carry mass in transport.
    pub prompts: bool,
    /// How many spans both sides share.
    pub shared_count: usize,
    /// The first of them.
    pub shared: Vec<LinkShown>,
    /// How many links there are.
    pub link_count: usize,
    /// The first of them.
    pub links: Vec<LinkShown>,
}

/// A part of the teacher's text with what it corresponds to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkShown {
    /// First byte and end in the teacher's text.
    pub teacher: (u32, u32),
    /// These bytes.
    pub text: String,
    /// As `completion[0:9]`.
    pub student: String,
}

impl PairShown {
    /// Of a frame; `None` where the student reads what the teacher does.
    pub fn of(frame: &Frame) -> Option<Self> {
        let View {
            record,
            prompts,
            shared,
            links,
        } = frame.view.as_ref()?;
        let shown = |links: &[Link]| {
            let first = links.iter().take(SHOWN_LINKS_MAX);
            first.map(|link| LinkShown::of(link, &frame.text)).collect()
        };
        Some(Self {
            sequence_id: format!("{:016x}", frame.sequence_id),
            index: frame.index,
            teacher: pairs::shorten(&frame.text, SHOWN_CHARS_MAX),
            student: pairs::shorten(record, SHOWN_CHARS_MAX),
            prompts: *prompts,
            shared_count: shared.len(),
            shared: shown(shared),
            link_count: links.len(),
            links: shown(links),
        })
    }

    /// A few lines for people.
    pub fn lines(&self) -> String {
        let mass = if self.prompts {
            "prompts carry mass"
        } else {
            "completions carry mass"
        };
        let mut lines = format!(
            "pair {} at {} ({mass}):\n  teacher {}\n  student {}\n",
            self.sequence_id,
            self.index,
            visible(&self.teacher),
            visible(&self.student)
        );
        for (name, count, shown) in [
            ("shared", self.shared_count, &self.shared),
            ("link", self.link_count, &self.links),
        ] {
            for LinkShown {
                teacher: (start, end),
                text,
                student,
            } in shown
            {
                let (text, student) = (visible(text), visible(student));
                lines += &format!("  {name} [{start}:{end}] `{text}` with {student}\n");
            }
            if count > shown.len() {
                lines += &format!("  and {} more\n", count - shown.len());
            }
        }
        if self.shared_count == 0 {
            lines += "  nothing is shared\n";
        }
        lines
    }
}

impl LinkShown {
    fn of(link: &Link, text: &str) -> Self {
        let (start, end) = link.teacher;
        let bytes = text.get(start as usize..end as usize);
        Self {
            teacher: link.teacher,
            text: pairs::shorten(bytes.unwrap_or_default(), SHOWN_CHARS_MAX),
            student: link.student.to_string(),
        }
    }
}

/// With line breaks as `\n`, and whatever could move a cursor or hide written out.
fn visible(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '"' | '\'' => out.push(c),
            _ => out.extend(c.escape_debug()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use distill_proto::{FieldRange, Fingerprint};

    use super::*;
    use crate::{
        production::{Forward, Tokens},
        testing::{FakeTeacher, sequence},
    };

    fn frame(text: &str, view: Option<View>) -> Frame {
        let sequence = sequence(7, 4);
        let rows = FakeTeacher::default().rows(&[Tokens::of(&sequence)]);
        Frame {
            sequence_id: 7,
            index: 3,
            text_digest: Fingerprint::of(text.as_bytes()),
            text: text.to_owned(),
            token_ids: sequence.token_ids,
            byte_offsets: sequence.byte_offsets,
            target_mask: sequence.target_mask,
            rows: rows.unwrap().remove(0),
            view,
        }
    }

    fn link(teacher: (u32, u32)) -> Link {
        Link {
            teacher,
            student: FieldRange {
                field: "completion".to_owned(),
                start: 1,
                end: 3,
            },
        }
    }

    #[test]
    fn a_pair_is_shown_shortened_and_with_what_both_sides_share() {
        assert_eq!(PairShown::of(&frame("abc", None)), None);
        let record = format!(
            "{{\"prompt\":\"{}\",\"completion\":\"abc\"}}",
            "长".repeat(2 * SHOWN_CHARS_MAX)
        );
        let view = View {
            record,
            prompts: true,
            shared: vec![link((2, 4))],
            links: vec![link((0, 1)); SHOWN_LINKS_MAX + 2],
        };
        let shown = PairShown::of(&frame("a\nb\u{1b}c", Some(view))).unwrap();
        assert_eq!(shown.student.chars().count(), SHOWN_CHARS_MAX + 1);
        assert_eq!(
            (shown.shared_count, shown.link_count),
            (1, SHOWN_LINKS_MAX + 2)
        );
        let lines = shown.lines();
        for expected in [
            "pair 0000000000000007 at 3 (prompts carry mass)",
            "teacher a\\nb\\u{1b}c\n",
            "student {\"prompt\":\"长长",
            "shared [2:4] `b\\u{1b}` with completion[1:3]",
            "link [0:1] `a` with completion[1:3]",
            "and 2 more",
        ] {
            assert!(lines.contains(expected), "{expected} in {lines}");
        }
    }

    #[test]
    fn a_pair_that_shares_nothing_says_so() {
        let view = View {
            record: "{}".to_owned(),
            prompts: false,
            shared: vec![],
            links: vec![],
        };
        let shown = PairShown::of(&frame("abc", Some(view))).unwrap();
        assert!(shown.lines().contains("nothing is shared"));
    }
}
