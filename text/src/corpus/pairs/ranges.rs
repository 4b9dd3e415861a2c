//! Provides the parts of a pair that correspond: ranges of bytes of named fields, read and checked against both sides.

use distill_proto::{
    FieldRange,
    limits::{FIELD_NAME_BYTES_MAX, LINKS_MAX},
};

use super::record::{Field, Fields, Place, Record};
use crate::{
    json::{Json, Object, take},
    limits::SHOWN_CHARS_MAX,
};

/// A part of the teacher's record with one of the student's.
pub(crate) type Parts = (FieldRange, FieldRange);

/// Where a pair's sides correspond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shared {
    /// As the line says.
    Given(Vec<Parts>),
    /// The longest common end of both answers, where there is one.
    End(Option<Parts>),
}

/// Reads the list `name` of a line.
pub(super) fn read_list(
    name: &str,
    list: Json,
    teacher: &Record,
    student: &Record,
) -> Result<Vec<Parts>, String> {
    let Json::Array(list) = list else {
        let found = list.kind();
        return Err(format!(
            "`{name}` must be a list of objects with `teacher` and `student`, but is {found}"
        ));
    };
    if list.len() > LINKS_MAX {
        let found = list.len();
        return Err(format!(
            "`{name}` has {found} entries, above the limit of {LINKS_MAX}"
        ));
    }
    let entries = list.into_iter().enumerate();
    entries
        .map(|(at, entry)| {
            let place = format!("{name}[{at}]");
            let mut entry = object(&place, entry)?;
            let mut side = |side: &str, fields: &Fields| {
                let place = format!("`{place}.{side}`");
                let range = read_range(take(&mut entry, side));
                let range = range.map_err(|reason| format!("{place} {reason}"))?;
                check(&range, fields).map_err(|reason| format!("{place}: the {side} {reason}"))?;
                Ok::<FieldRange, String>(range)
            };
            let parts = (
                side("teacher", &teacher.fields)?,
                side("student", &student.fields)?,
            );
            match entry.keys().next() {
                None => Ok(parts),
                Some(other) => Err(format!(
                    "`{place}` has a field `{other}`, which is not known; expected `teacher` and `student` alone"
                )),
            }
        })
        .collect()
}

/// Refuses parts whose bytes differ.
pub(super) fn check_equal(
    parts: &[Parts],
    teacher: &Record,
    student: &Record,
) -> Result<(), String> {
    for (at, (ours, theirs)) in parts.iter().enumerate() {
        let (one, other) = (
            check(ours, &teacher.fields)?,
            check(theirs, &student.fields)?,
        );
        if one != other {
            return Err(format!(
                "`shared[{at}]`: {ours} is {:?} and {theirs} is {:?}, which are not the same bytes; use `links` for what \
                 corresponds without being equal",
                shorten(one, SHOWN_CHARS_MAX),
                shorten(other, SHOWN_CHARS_MAX)
            ));
        }
    }
    Ok(())
}

/// The longest common end of both answers.
///
/// White space at the ends of what a chat template writes is left out: most trim it.
pub(super) fn common_end(teacher: &Record, student: &Record) -> Option<Parts> {
    let (one, other) = (teacher.fields.answer()?, student.fields.answer()?);
    let is_chat = [one, other]
        .iter()
        .any(|field| matches!(field.place, Place::Message { .. }));
    let words = |field: &Field| {
        let trimmed = field.text.trim_end().len();
        if is_chat { trimmed } else { field.text.len() }
    };
    let (first, second) = (words(one), words(other));
    let (a, b) = (one.text.get(..first)?, other.text.get(..second)?);
    let back = a.bytes().rev().zip(b.bytes().rev());
    let mut common = back.take_while(|(x, y)| x == y).count();
    while !a.is_char_boundary(first - common) {
        common -= 1;
    }
    if is_chat && (common == first || common == second) {
        common = a.get(first - common..)?.trim_start().len();
    }
    let range = |field: &Field, end: usize| {
        Some(FieldRange {
            field: field.name.clone(),
            start: u32::try_from(end - common).ok()?,
            end: u32::try_from(end).ok()?,
        })
    };
    let parts = (range(one, first)?, range(other, second)?);
    (common > 0).then_some(parts)
}

/// The bytes that a range names; the error says what its side has instead.
pub(crate) fn check<'f>(range: &FieldRange, fields: &'f Fields) -> Result<&'f str, String> {
    let text = fields.find(&range.field)?.text.as_str();
    let (start, end, count) = (range.start as usize, range.end as usize, text.len());
    if start >= end {
        let reason = if start == end {
            "is empty"
        } else {
            "ends before it begins"
        };
        return Err(format!("range {range} {reason}"));
    }
    if end > count {
        return Err(format!(
            "range {range} goes beyond the {count} bytes of `{}`",
            range.field
        ));
    }
    text.get(start..end).ok_or_else(|| {
        let inside = [start, end]
            .into_iter()
            .find(|&byte| !text.is_char_boundary(byte));
        format!(
            "range {range} cuts a character: byte {} is inside of one; ranges count bytes of UTF-8",
            inside.unwrap_or(start)
        )
    })
}

fn object(place: &str, value: Json) -> Result<Object, String> {
    match value {
        Json::Object(fields) => Ok(fields),
        other => Err(format!(
            "`{place}` must be an object with `teacher` and `student`, but is {}",
            other.kind()
        )),
    }
}

/// Reads `completion[0:9]`.
fn read_range(value: Option<Json>) -> Result<FieldRange, String> {
    let expected = "must be a field with a range of its bytes, as \"completion[0:9]\"";
    let text = match value {
        Some(Json::String(text)) => text,
        Some(other) => return Err(format!("{expected}, but is {}", other.kind())),
        None => return Err(format!("is missing; it {expected}")),
    };
    let parts = text.strip_suffix(']').and_then(|text| {
        let (field, range) = text.rsplit_once('[')?;
        let (start, end) = range.split_once(':')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let is_range = is_number(start) && is_number(end) && field.len() <= FIELD_NAME_BYTES_MAX;
        is_range.then_some((field, start, end))
    });
    match parts.map(|(field, start, end)| (field, start.parse(), end.parse())) {
        Some((field, Ok(start), Ok(end))) => Ok(FieldRange {
            field: field.to_owned(),
            start,
            end,
        }),
        Some(_) => Err(format!(
            "is out of bounds: {:?} goes beyond byte {}, and no field is as long",
            shorten(&text, SHOWN_CHARS_MAX),
            u32::MAX
        )),
        _ => Err(format!(
            "{expected}, but is {:?}",
            shorten(&text, SHOWN_CHARS_MAX)
        )),
    }
}

/// The first `chars_max` characters of a text, for people.
pub fn shorten(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
