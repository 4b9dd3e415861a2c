//! Provides one side of a pair: a record in any form of a line, and what its fields are called.

use crate::{
    corpus::document::{Document, Form},
    json::{Json, Object, take},
};

/// A record with its fields.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub document: Document,
    pub fields: Fields,
    /// What its form reads, in the form's order.
    kept: Object,
}

/// A text of a record that a range of bytes may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// As `completion` or `messages[2].content`.
    pub name: String,
    pub text: String,
    pub place: Place,
}

/// What becomes of a field before it is tokenised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It begins at this byte of the text.
    Text(usize),
    /// It begins at byte `start` of the words of a message, which a chat template writes.
    Message { index: usize, start: usize },
}

/// The fields of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    all: Vec<Field>,
    /// Which of them is the answer: the completion, the last words of the assistant, or the text.
    answer: Option<usize>,
}

impl Record {
    /// Reads the fields of a record; the error is the reason alone.
    pub fn read(mut object: Object) -> Result<Self, String> {
        let form = Form::of_fields(&object)?;
        let mut kept = Object::new();
        for &name in form.fields() {
            if let Some(value) = take(&mut object, name) {
                kept.insert(name.to_owned(), value);
            }
        }
        let document = Document::read(form, kept.clone())?;
        let fields = Fields::of(form, &kept, &document);
        Ok(Self {
            document,
            fields,
            kept,
        })
    }

    /// The record as JSON: its form's fields and no others, so that what nobody reads does not tell two records apart.
    pub fn to_json(&self) -> String {
        Json::Object(self.kept.clone()).to_text()
    }

    /// Takes what the assistant said in the first messages out of the targets.
    pub fn learn_from(&mut self, first: usize) {
        if let Document::Chat(dialogue) = &mut self.document {
            dialogue
                .learnt
                .iter_mut()
                .take(first)
                .for_each(|learnt| *learnt = false);
        }
    }

    /// Why it has no words that a student could learn; `None` where it has.
    pub fn teaches_nothing(&self) -> Option<&'static str> {
        let is_empty = match &self.document {
            Document::Text(text) => text.is_empty(),
            Document::Completion { completion, .. } => completion.is_empty(),
            Document::Chat(dialogue) => {
                let empty = Json::from("");
                let says_more = |message: &Object| {
                    message.iter().any(|(name, value)| {
                        !["role", "name"].contains(&name.as_str()) && *value != empty
                    })
                };
                let mut answers = dialogue.messages.iter().zip(&dialogue.learnt);
                let is_learnt = answers.any(|(message, &learnt)| learnt && says_more(message));
                let last = dialogue.last_turn_of_assistant();
                let last = last.and_then(|last| dialogue.messages.get(last));
                if !is_learnt && last.is_some_and(says_more) {
                    return Some(
                        "its answers are taken out of the targets by `weight`, `train` or `loss`",
                    );
                }
                !is_learnt
            }
            Document::Pair(_) => true,
        };
        is_empty.then_some("its completion is empty")
    }
}

impl Fields {
    fn of(form: Form, kept: &Object, document: &Document) -> Self {
        let text_at = |name: &str, place: Place| {
            let text = kept.get(name).and_then(Json::as_str)?.to_owned();
            let name = name.to_owned();
            Some(Field { name, text, place })
        };
        let count = match document {
            Document::Chat(dialogue) => dialogue.messages.len(),
            _ => 0,
        };
        let list = |name: &str| match kept.get(name) {
            Some(Json::Array(list)) => list.as_slice(),
            _ => &[],
        };
        let in_message =
            |name: &str, index: usize, start: usize| text_at(name, Place::Message { index, start });
        let mut all: Vec<Field> = Vec::new();
        let mut answer_name = None;
        match (form, document) {
            (Form::Text, _) => all.extend(text_at("text", Place::Text(0))),
            (Form::Completion, Document::Completion { prompt, .. }) => {
                all.extend(text_at("prompt", Place::Text(0)));
                all.extend(text_at("completion", Place::Text(prompt.len())));
            }
            (Form::Completion, _) => {
                let prompt = list("prompt");
                all.extend(words("prompt", prompt, 0));
                all.extend(words("completion", list("completion"), prompt.len()));
            }
            (Form::Messages, _) => all.extend(words("messages", list("messages"), 0)),
            (Form::Conversations, _) => {
                let turns = list("conversations");
                // A system prompt beside the turns is a message before them.
                let before = count.saturating_sub(turns.len());
                if before > 0 {
                    all.extend(in_message("system", 0, 0));
                }
                all.extend(words("conversations", turns, before));
            }
            (Form::Instruction, _) => {
                let (question, answer) = (count.saturating_sub(2), count.saturating_sub(1));
                if question > 0 {
                    all.extend(in_message("system", 0, 0));
                }
                let instruction = in_message("instruction", question, 0);
                // As the question is put together of both, with an empty line between them.
                let behind = instruction.as_ref().map_or(0, |field| field.text.len()) + 2;
                all.extend(instruction);
                all.extend(in_message("input", question, behind));
                all.extend(in_message("output", answer, 0));
                answer_name = Some("output".to_owned());
            }
        }
        let last_turn = match document {
            Document::Chat(dialogue) => dialogue.last_turn_of_assistant(),
            _ => None,
        };
        let answer = all.iter().rposition(|field| match field.place {
            Place::Text(_) => true,
            Place::Message { index, .. } => {
                Some(index) == last_turn
                    && answer_name.as_ref().is_none_or(|name| *name == field.name)
            }
        });
        Self { all, answer }
    }

    /// The field of this name; the error names those that there are.
    pub fn find(&self, name: &str) -> Result<&Field, String> {
        let found = self.all.iter().find(|field| field.name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.all.iter().map(|field| field.name.as_str()).collect();
            format!("has no text `{name}`; it has {names:?}")
        })
    }

    /// The completion, the last words of the assistant, or the text, where it is a text.
    pub fn answer(&self) -> Option<&Field> {
        self.all.get(self.answer?)
    }
}

/// The texts of messages, `first` of them before these.
fn words(name: &str, messages: &[Json], first: usize) -> Vec<Field> {
    let texts = messages.iter().enumerate().filter_map(|(at, message)| {
        let Json::Object(message) = message else {
            return None;
        };
        // ShareGPT's `value` counts before `content`, as where its turns become messages.
        let keys: &[&str] = if name == "conversations" {
            &["value", "content"]
        } else {
            &["content"]
        };
        let mut present = keys
            .iter()
            .filter_map(|&key| Some((key, message.get(key)?)))
            .filter(|(_, value)| !value.is_null());
        let (key, value) = present.next()?;
        Some(Field {
            name: format!("{name}[{at}].{key}"),
            text: value.as_str()?.to_owned(),
            place: Place::Message {
                index: first + at,
                start: 0,
            },
        })
    });
    texts.collect()
}
