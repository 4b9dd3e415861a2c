//! Provides the student's view of a record whose two sides differ, and its bytes in a frame.

use crate::limits::{FIELD_NAME_BYTES_MAX, LINKS_MAX};

/// What the student reads of a record, where that is not the teacher's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The student's side as JSON: a record in any form of a corpus line, before any template.
    pub record: String,
    /// Whether prompts carry mass in transport too.
    pub prompts: bool,
    /// Where both sides have the same bytes.
    pub shared: Vec<Link>,
    /// What corresponds without having the same bytes.
    pub links: Vec<Link>,
}

/// A part of the teacher's text with a part of the student's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Bytes of the frame's text, half-open.
    pub teacher: (u32, u32),
    /// The student's part.
    pub student: FieldRange,
}

/// Bytes of a field of a record, half-open, before any template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRange {
    /// As `completion` or `messages[2].content`.
    pub field: String,
    /// First byte.
    pub start: u32,
    /// The byte after the last.
    pub end: u32,
}

impl std::fmt::Display for FieldRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}:{}]", self.field, self.start, self.end)
    }
}

impl View {
    /// What breaks a rule, if anything does: the field and the reason. `text` is the teacher's.
    pub(crate) fn flaw(&self, text: &str) -> Option<(&'static str, String)> {
        for (what, links) in [("shared", &self.shared), ("links", &self.links)] {
            if links.len() > LINKS_MAX {
                let reason = format!("{} of them; at most {LINKS_MAX}", links.len());
                return Some((what, reason));
            }
            for link in links {
                let (start, end) = link.teacher;
                if start > end || text.get(start as usize..end as usize).is_none() {
                    let reason = format!("{start}:{end} is no part of the text");
                    return Some((what, reason));
                }
                let FieldRange { field, start, end } = &link.student;
                if start > end || field.is_empty() || field.len() > FIELD_NAME_BYTES_MAX {
                    return Some((what, format!("{:?} is no part of a field", link.student)));
                }
            }
        }
        (self.record.is_empty()).then(|| ("record", "is empty".to_owned()))
    }

    /// The bytes that stand for it in a frame.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.prompts)];
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend(length(text.len()).to_le_bytes());
            out.extend(text.as_bytes());
        };
        text(&mut out, &self.record);
        for links in [&self.shared, &self.links] {
            out.extend(length(links.len()).to_le_bytes());
            for Link { teacher, student } in links {
                for byte in [teacher.0, teacher.1, student.start, student.end] {
                    out.extend(byte.to_le_bytes());
                }
                text(&mut out, &student.field);
            }
        }
        out
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; `None` where these are no bytes of a view. Memory grows with what was
    /// read.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let prompts = match take(&mut rest, 1)? {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        let record = text(&mut rest)?;
        let shared = links(&mut rest)?;
        let links = links(&mut rest)?;
        rest.is_empty().then_some(Self {
            record,
            prompts,
            shared,
            links,
        })
    }
}

/// A length of something that fits a frame, whose limits are far below 2^32; longer ones are refused by its header.
fn length(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(count)?;
    *rest = tail;
    Some(head)
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?))
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let bytes = number(rest)? as usize;
    String::from_utf8(take(rest, bytes)?.to_vec()).ok()
}

fn links(rest: &mut &[u8]) -> Option<Vec<Link>> {
    let mut links = Vec::new();
    for _ in 0..number(rest)? {
        let teacher = (number(rest)?, number(rest)?);
        let (start, end) = (number(rest)?, number(rest)?);
        let field = text(rest)?;
        let student = FieldRange { field, start, end };
        links.push(Link { teacher, student });
    }
    Some(links)
}
