/*! Provides pairs: records that give teacher and student a view each.

```text
 {"teacher": RECORD, "student": RECORD, "shared": [..], "links": [..], "targets": ..} ──┐
 {.. "teacher_prompt": ..}  {.. "teacher_messages": ..}  (short forms) ─────────────────┴─> Pair
                                                                                             │
   teacher's RECORD ── Side::read, teacher's tokenizer ──> Sequence { .., view: View } <─────┤
   student's RECORD as JSON, fields with ranges ─────────────────────────────┘ └─ in a frame ┘
                                       │
              read_side, student's tokenizer ──> Side: text, tokens, labels, and where a field's bytes are in it
```

`shared` and `links` are half-open ranges of UTF-8 bytes of a named field, before any template. What a line can show by
itself is checked where it is read; what a chat template does to a field, where its side is rendered.
*/

mod ranges;
mod record;
mod side;

use crate::{
    corpus::document::{EXPECTED, Form},
    json::{Json, Object, take},
};
use ranges::{Parts, check_equal, common_end, read_list};
use record::Record;

pub(crate) use ranges::Shared;
pub use ranges::shorten;
pub use side::{Side, read_side};

/// A record whose sides differ.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pair {
    pub teacher: Record,
    /// The student's record as JSON.
    pub student: String,
    /// Whether prompts carry mass in transport, and the teacher says something of them.
    pub prompts: bool,
    pub shared: Shared,
    pub links: Vec<Parts>,
}

/// The fields of a line that make a pair.
pub(crate) const FIELDS: [&str; 7] = [
    TEACHER,
    STUDENT,
    SHARED,
    LINKS,
    TARGETS,
    TEACHER_PROMPT,
    TEACHER_MESSAGES,
];
/// Those that hold a record each.
pub(crate) const SIDES: [&str; 2] = [TEACHER, STUDENT];
const TEACHER: &str = "teacher";
const STUDENT: &str = "student";
const SHARED: &str = "shared";
const LINKS: &str = "links";
const TARGETS: &str = "targets";
const TEACHER_PROMPT: &str = "teacher_prompt";
const TEACHER_MESSAGES: &str = "teacher_messages";

impl Pair {
    /// Takes a pair out of the fields of a line; `None` where it is an ordinary record, which may have fields of these
    /// names for purposes of its own. The error is the reason alone.
    pub fn find(fields: &mut Object) -> Result<Option<Self>, String> {
        let Some((teacher, student)) = sides(fields)? else {
            return match [SHARED, LINKS]
                .into_iter()
                .find(|name| lists_parts(fields, name))
            {
                None => Ok(None),
                Some(name) => Err(format!(
                    "`{name}` joins two sides, but the line is no pair: give `{TEACHER}` and `{STUDENT}`, or \
                     `{TEACHER_PROMPT}` or `{TEACHER_MESSAGES}` beside the record"
                )),
            };
        };
        let prompts = prompts(take(fields, TARGETS))?;
        for (side, record, gives) in [
            (TEACHER, &teacher, "so it has no row to give"),
            (STUDENT, &student, "so there is nothing to learn"),
        ] {
            // Where prompts carry mass, a student learns from a question without its answer too.
            if let Some(flaw) = record.teaches_nothing().filter(|_| !prompts) {
                return Err(format!(
                    "`{side}`: {flaw}, {gives}; give one, or `{TARGETS}`: \"all\" for prompts to carry mass"
                ));
            }
        }
        let shared = match take(fields, SHARED) {
            None => Shared::End(common_end(&teacher, &student)),
            Some(list) => {
                let parts = read_list(SHARED, list, &teacher, &student)?;
                check_equal(&parts, &teacher, &student)?;
                Shared::Given(parts)
            }
        };
        let links = match take(fields, LINKS) {
            None => Vec::new(),
            Some(list) => read_list(LINKS, list, &teacher, &student)?,
        };
        Ok(Some(Self {
            student: student.to_json(),
            teacher,
            prompts,
            shared,
            links,
        }))
    }
}

/// Both sides, where the line gives them.
fn sides(fields: &mut Object) -> Result<Option<(Record, Record)>, String> {
    let present = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
    let short = [TEACHER_PROMPT, TEACHER_MESSAGES]
        .into_iter()
        .filter(|name| present(name));
    let short: Vec<&str> = short.collect();
    let whole = is_pair(fields)?;
    match short.as_slice() {
        [] if !whole => Ok(None),
        [] => {
            let teacher = side(TEACHER, take(fields, TEACHER), STUDENT)?;
            let student = side(STUDENT, take(fields, STUDENT), TEACHER)?;
            // Its author means it for one side or both.
            match Form::field_of_any(fields) {
                None => Ok(Some((teacher, student))),
                Some(name) => Err(format!(
                    "`{name}` stands beside `{TEACHER}` and `{STUDENT}`, where no side reads it; put it into the sides that it is meant \
                     for, or take it out"
                )),
            }
        }
        [name] if whole => Err(both(name, TEACHER)),
        [name] => beside(name, fields).map(Some),
        _ => Err(both(TEACHER_PROMPT, TEACHER_MESSAGES)),
    }
}

fn both(one: &str, other: &str) -> String {
    format!("has both `{one}` and `{other}`; give the teacher's side once")
}

/// Whether `teacher` and `student` are meant as the sides of a pair: other people's rows have texts of these names.
fn is_pair(fields: &Object) -> Result<bool, String> {
    let value = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let is_object = |name: &str| matches!(value(name), Some(Json::Object(_)));
    let is_record = |name: &str| match value(name) {
        Some(Json::Object(side)) => Form::of_fields(side).is_ok() || is_nested(side).is_some(),
        _ => false,
    };
    if is_object(TEACHER) && is_object(STUDENT) || is_record(TEACHER) || is_record(STUDENT) {
        return Ok(true);
    }
    let ordinary = Form::of_fields(fields).is_ok();
    Ok(!ordinary && (value(TEACHER).is_some() || value(STUDENT).is_some()))
}

/// One side of a pair.
fn side(name: &str, found: Option<Json>, other: &str) -> Result<Record, String> {
    let record = match found {
        Some(Json::Object(record)) => record,
        Some(found) => {
            return Err(format!(
                "`{name}` must be a record, an object, but is {}; in it {EXPECTED}",
                found.kind()
            ));
        }
        None => {
            return Err(format!(
                "has `{other}` without `{name}`; a pair gives both sides, a record each"
            ));
        }
    };
    if let Some(inner) = is_nested(&record) {
        return Err(format!(
            "`{name}` has `{inner}` in it: a pair within a pair is not possible"
        ));
    }
    // Its author means something by them.
    if let Some(list) = [SHARED, LINKS]
        .into_iter()
        .find(|list| lists_parts(&record, list))
    {
        return Err(format!(
            "`{name}` has `{list}` in it, which belongs beside `{TEACHER}` and `{STUDENT}`"
        ));
    }
    Record::read(record).map_err(|reason| format!("`{name}`: {reason}"))
}

/// What makes the side of a pair a pair itself.
fn is_nested(record: &Object) -> Option<&'static str> {
    let present = |name: &str| record.get(name).is_some_and(|value| !value.is_null());
    let is_object = |name: &str| matches!(record.get(name), Some(Json::Object(_)));
    let short = [TEACHER_PROMPT, TEACHER_MESSAGES].into_iter();
    let sides = [TEACHER, STUDENT].into_iter();
    let mut found = short
        .filter(|name| present(name))
        .chain(sides.filter(|name| is_object(name)));
    found.next()
}

/// An ordinary record for the student, and the same with another context for the teacher.
fn beside(name: &'static str, fields: &mut Object) -> Result<(Record, Record), String> {
    let context = take(fields, name).unwrap_or(Json::Null);
    let form = Form::of_fields(fields).map_err(|reason| format!("beside `{name}`: {reason}"))?;
    let student = Record::read(fields.clone())?;
    let mut teacher = fields.clone();
    let refuse = |found: &str| {
        let goes_with = if name == TEACHER_PROMPT {
            "`prompt` and `completion` as texts"
        } else {
            "`messages`, or with `prompt` and `completion` as lists of messages"
        };
        format!("`{name}` goes with {goes_with}; this record has {found}")
    };
    match (name, form, fields.get("prompt"), context) {
        (TEACHER_PROMPT, Form::Completion, Some(Json::String(_)), Json::String(prompt)) => {
            teacher.insert("prompt".to_owned(), Json::String(prompt));
        }
        (TEACHER_MESSAGES, Form::Completion, Some(Json::Array(_)), Json::Array(prompt)) => {
            teacher.insert("prompt".to_owned(), Json::Array(prompt));
        }
        (TEACHER_MESSAGES, Form::Messages, _, Json::Array(context)) => {
            return with_context(teacher, context).map(|teacher| (teacher, student));
        }
        (TEACHER_PROMPT, Form::Completion, Some(Json::String(_)), other) => {
            return Err(format!("`{name}` must be a text, but is {}", other.kind()));
        }
        (TEACHER_MESSAGES, Form::Completion, Some(Json::Array(_)), other)
        | (TEACHER_MESSAGES, Form::Messages, _, other) => {
            return Err(format!(
                "`{name}` must be a list of messages, but is {}",
                other.kind()
            ));
        }
        (_, Form::Completion, Some(Json::String(_)), _) => return Err(refuse("texts")),
        (_, Form::Completion, ..) => return Err(refuse("lists of messages")),
        _ => return Err(refuse(&format!("`{}`", form.name()))),
    }
    let teacher = Record::read(teacher).map_err(|reason| format!("`{name}`: {reason}"))?;
    Ok((teacher, student))
}

/// A conversation with other messages before the final one of the assistant, which alone is learnt of it.
fn with_context(mut fields: Object, context: Vec<Json>) -> Result<Record, String> {
    let messages = match take(&mut fields, "messages") {
        Some(Json::Array(messages)) => messages,
        _ => Vec::new(),
    };
    let is_assistants = |message: &Json| match message {
        Json::Object(message) => message.get("role").and_then(Json::as_str) == Some("assistant"),
        _ => false,
    };
    let last = messages.iter().rposition(is_assistants);
    let first_learnt = context.len();
    let kept = messages.into_iter().skip(last.unwrap_or_default());
    let all = context.into_iter().chain(kept).collect();
    fields.insert("messages".to_owned(), Json::Array(all));
    let record = Record::read(fields);
    let mut record = record.map_err(|reason| format!("`{TEACHER_MESSAGES}`: {reason}"))?;
    record.learn_from(first_learnt);
    Ok(record)
}

fn prompts(targets: Option<Json>) -> Result<bool, String> {
    let expected = "must be \"completion\", or \"all\" where prompts carry mass in transport too";
    match targets {
        None => Ok(false),
        Some(Json::String(word)) if word == "completion" => Ok(false),
        Some(Json::String(word)) if word == "all" => Ok(true),
        Some(Json::String(word)) => Err(format!("`{TARGETS}` {expected}, but is {word:?}")),
        Some(other) => Err(format!("`{TARGETS}` {expected}, but is {}", other.kind())),
    }
}

/// Whether a field holds what `shared` and `links` of a pair hold.
fn lists_parts(fields: &Object, name: &str) -> bool {
    match fields.get(name) {
        Some(Json::Array(list)) => list.iter().any(|entry| match entry {
            Json::Object(entry) => entry.contains_key(TEACHER) && entry.contains_key(STUDENT),
            _ => false,
        }),
        _ => false,
    }
}

#[cfg(test)]
mod refused_tests;
#[cfg(test)]
mod side_tests;
#[cfg(test)]
mod tests;
