//! Provides the forms that a line of JSONL or a row of Parquet can have.

use super::pairs::Pair;
use crate::{
    chat::Dialogue,
    json::{self, Json, Object, take},
};

/// One document of a corpus.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Document {
    /// Running text; every token is a target.
    Text(String),
    /// Only the completion is a target.
    Completion { prompt: String, completion: String },
    /// Only the assistant's turns are targets, without those that the row takes out.
    Chat(Dialogue),
    /// A view each for teacher and student.
    Pair(Box<Pair>),
}

/// What tells the forms apart: which fields there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Chat messages with `role` and `content`.
    Messages,
    /// ShareGPT: turns with `from` and `value`.
    Conversations,
    /// A prompt and what follows it, both texts or both lists of messages.
    Completion,
    /// Alpaca: `instruction` and `output`, most often with `input`.
    Instruction,
    /// Running text.
    Text,
}

/// What a document must be, for error messages.
pub(crate) const EXPECTED: &str = "expected `messages` (a list), `conversations` (a list), `prompt` and `completion` (texts or \
                                   lists of messages), `instruction` and `output` (texts), or `text` (a text)";
const OBJECT: &str = "expected a JSON object";

impl Form {
    /// All forms, the first that a row has counts. Alpaca comes before text, since its files often hold the whole rendering
    /// as `text` too.
    pub const ALL: [Self; 5] = [
        Self::Messages,
        Self::Conversations,
        Self::Completion,
        Self::Instruction,
        Self::Text,
    ];

    /// The first form whose telling fields are there; a null is not.
    pub fn of(has: impl Fn(&str) -> bool) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|form| form.telling().iter().all(|name| has(name)))
    }

    /// The form of a record; the error is the reason alone.
    pub fn of_fields(fields: &Object) -> Result<Self, String> {
        let form = Self::of(|name| fields.get(name).is_some_and(|value| !value.is_null()));
        form.ok_or_else(|| {
            let found: Vec<&str> = fields.keys().take(8).map(String::as_str).collect();
            format!("{EXPECTED}, found the fields {found:?}")
        })
    }

    /// The first field that tells it.
    pub fn name(self) -> &'static str {
        self.telling().first().copied().unwrap_or_default()
    }

    fn telling(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages"],
            Self::Conversations => &["conversations"],
            Self::Completion => &["completion"],
            Self::Instruction => &["instruction", "output"],
            Self::Text => &["text"],
        }
    }

    /// A field that some form reads and that is there.
    pub fn field_of_any(fields: &Object) -> Option<&str> {
        let there = |name: &&str| fields.get(*name).is_some_and(|value| !value.is_null());
        Self::ALL
            .into_iter()
            .flat_map(Self::fields)
            .copied()
            .find(there)
    }

    /// The fields that are read; the others are ignored.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages", "tools", "chat_template_kwargs"],
            Self::Conversations => &["conversations", "system", "tools", "chat_template_kwargs"],
            Self::Completion => &["prompt", "completion", "tools", "chat_template_kwargs"],
            Self::Instruction => &[
                "instruction",
                "input",
                "output",
                "system",
                "tools",
                "chat_template_kwargs",
            ],
            Self::Text => &["text"],
        }
    }
}

impl Document {
    /// Reads a line; the error is the reason alone.
    pub fn parse(line: &str) -> Result<Self, String> {
        let value =
            json::parse(line).map_err(|e| format!("{e}; {OBJECT}, and in it {EXPECTED}"))?;
        let Json::Object(fields) = value else {
            return Err(format!("{OBJECT}, and in it {EXPECTED}"));
        };
        Self::of_fields(fields)
    }

    /// Reads the fields of a line or row; the error is the reason alone.
    pub fn of_fields(mut fields: Object) -> Result<Self, String> {
        match Pair::find(&mut fields)? {
            Some(pair) => Ok(Self::Pair(Box::new(pair))),
            None => Self::read(Form::of_fields(&fields)?, fields),
        }
    }

    /// Reads the fields of one form.
    pub fn read(form: Form, mut fields: Object) -> Result<Self, String> {
        let fields = &mut fields;
        let dialogue = match form {
            Form::Messages => Dialogue::read("messages", required(fields, "messages")?)?,
            Form::Conversations => {
                let system = optional_text(fields, "system")?;
                let turns = required(fields, "conversations")?;
                Dialogue::read("conversations", messages(turns, system)?)?
            }
            Form::Completion => {
                match (required(fields, "prompt")?, required(fields, "completion")?) {
                    (Json::String(prompt), Json::String(completion)) => {
                        return Ok(Self::Completion { prompt, completion });
                    }
                    (prompt @ Json::Array(_), completion @ Json::Array(_)) => {
                        let mut dialogue = Dialogue::after_prompt("prompt", prompt)?;
                        dialogue.append("completion", completion)?;
                        dialogue
                    }
                    (prompt, completion) => {
                        return Err(format!(
                            "`prompt` and `completion` must be two texts or two lists of messages, but are {} and {}",
                            prompt.kind(),
                            completion.kind()
                        ));
                    }
                }
            }
            Form::Instruction => {
                let mut question = text(fields, "instruction")?;
                let input = optional_text(fields, "input")?;
                if !input.is_empty() {
                    question = format!("{question}\n\n{input}");
                }
                let answer = text(fields, "output")?;
                let system = optional_text(fields, "system")?;
                let turns = [("user", question), ("assistant", answer)];
                let turns = turns.map(|(role, text)| message(role, text));
                Dialogue::read("instruction", with_system(system, turns))?
            }
            Form::Text => return Ok(Self::Text(text(fields, "text")?)),
        };
        dialogue.with_extras(fields).map(Self::Chat)
    }
}

/// ShareGPT's turns as chat messages.
fn messages(turns: Json, system: String) -> Result<Json, String> {
    let Json::Array(turns) = turns else {
        return Err("`conversations` must be a list of objects with `from` and `value`".to_owned());
    };
    let messages: Vec<Json> = turns
        .into_iter()
        .enumerate()
        .map(|(at, turn)| turn_message(turn).map_err(|e| format!("`conversations[{at}]` {e}")))
        .collect::<Result<_, _>>()?;
    let begins_with_system = match messages.first() {
        Some(Json::Object(first)) => first.get("role") == Some(&Json::from("system")),
        _ => false,
    };
    if begins_with_system {
        Ok(Json::Array(messages))
    } else {
        Ok(with_system(system, messages))
    }
}

/// One turn, whose speaker and words may also be called `role` and `content`. They get these names, and everything else that it
/// says stays with it, as in TRL.
fn turn_message(turn: Json) -> Result<Json, String> {
    let Json::Object(mut fields) = turn else {
        return Err("must be an object with `from` and `value`".to_owned());
    };
    for (name, in_messages) in [("from", "role"), ("value", "content")] {
        if let Some(value) = take(&mut fields, name) {
            fields.shift_remove(in_messages);
            fields.insert(in_messages.to_owned(), value);
        }
    }
    let no_text =
        |name: &str, found: &Json| format!("has a `{name}` that is no text but {}", found.kind());
    let role = match fields.get("role") {
        Some(Json::String(from)) => role_of(from)?,
        Some(Json::Null) | None => return Err("has no `from`".to_owned()),
        Some(other) => return Err(no_text("from", other)),
    };
    fields.insert("role".to_owned(), Json::from(role));
    let calls = fields
        .get("tool_calls")
        .is_some_and(|calls| !calls.is_null());
    match fields.get("content") {
        Some(Json::String(_) | Json::Array(_)) => Ok(Json::Object(fields)),
        Some(Json::Null) | None if calls => Ok(Json::Object(fields)),
        Some(Json::Null) | None => Err("has no `value`".to_owned()),
        Some(other) => Err(no_text("value", other)),
    }
}

/// The role in chat messages of a speaker.
fn role_of(from: &str) -> Result<&'static str, String> {
    match from {
        "human" | "user" => Ok("user"),
        "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => Ok("assistant"),
        "system" => Ok("system"),
        "tool" | "observation" => Ok("tool"),
        other => Err(format!(
            "is from `{other}`, which is not known; expected human, gpt, system or tool"
        )),
    }
}

fn message(role: &str, content: String) -> Json {
    let fields = [
        ("role".to_owned(), Json::from(role)),
        ("content".to_owned(), Json::String(content)),
    ];
    Json::Object(fields.into_iter().collect())
}

fn with_system(system: String, messages: impl IntoIterator<Item = Json>) -> Json {
    let first = (!system.is_empty()).then(|| message("system", system));
    Json::Array(first.into_iter().chain(messages).collect())
}

fn required(fields: &mut Object, name: &str) -> Result<Json, String> {
    take(fields, name).ok_or_else(|| format!("`{name}` is missing; {EXPECTED}"))
}

fn text(fields: &mut Object, name: &str) -> Result<String, String> {
    match required(fields, name)? {
        Json::String(text) => Ok(text),
        other => Err(format!(
            "`{name}` must be a text, but is {}; {EXPECTED}",
            other.kind()
        )),
    }
}

/// A text that may be left out or null.
fn optional_text(fields: &mut Object, name: &str) -> Result<String, String> {
    match fields.get(name) {
        None | Some(Json::Null) => Ok(String::new()),
        Some(_) => text(fields, name),
    }
}
