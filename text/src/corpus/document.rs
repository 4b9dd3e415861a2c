//! Provides the forms that a line of JSONL or a row of Parquet can have.

use serde_json::{Map, Value, json};

/// One document of a corpus.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Document {
    /// Running text; every token is a target.
    Text(String),
    /// Only the completion is a target.
    Completion { prompt: String, completion: String },
    /// Only the assistant's turns are targets.
    Chat { messages: Value, tools: Value },
}

/// What tells the forms apart: which fields there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Chat messages with `role` and `content`.
    Messages,
    /// ShareGPT: turns with `from` and `value`.
    Conversations,
    /// A prompt and what follows it.
    Completion,
    /// Alpaca: `instruction` and `output`, most often with `input`.
    Instruction,
    /// Running text.
    Text,
}

/// What a document must be, for error messages.
pub(super) const EXPECTED: &str = "expected `messages` (a list), `conversations` (a list), `prompt` and `completion` (texts), \
                                   `instruction` and `output` (texts), or `text` (a text)";
const OBJECT: &str = "expected a JSON object";

impl Form {
    /// The first form whose telling fields are there. Alpaca comes before text, since its files often hold the whole
    /// rendering as `text` too.
    pub fn of(has: impl Fn(&str) -> bool) -> Option<Self> {
        match () {
            () if has("messages") => Some(Self::Messages),
            () if has("conversations") => Some(Self::Conversations),
            () if has("completion") => Some(Self::Completion),
            () if has("instruction") && has("output") => Some(Self::Instruction),
            () if has("text") => Some(Self::Text),
            () => None,
        }
    }

    /// The fields that are read; the others are ignored.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages", "tools"],
            Self::Conversations => &["conversations", "system", "tools"],
            Self::Completion => &["prompt", "completion"],
            Self::Instruction => &["instruction", "input", "output", "system"],
            Self::Text => &["text"],
        }
    }
}

impl Document {
    /// Reads a line; the error is the reason alone.
    pub fn parse(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line)
            .map_err(|e| format!("not JSON: {e}; {OBJECT}, and in it {EXPECTED}"))?;
        let Value::Object(fields) = value else {
            return Err(format!("{OBJECT}, and in it {EXPECTED}"));
        };
        match Form::of(|name| fields.contains_key(name)) {
            Some(form) => Self::read(form, fields),
            None => {
                let found: Vec<&str> = fields.keys().take(8).map(String::as_str).collect();
                Err(format!("{EXPECTED}, found the fields {found:?}"))
            }
        }
    }

    /// Reads the fields of one form.
    pub fn read(form: Form, mut fields: Map<String, Value>) -> Result<Self, String> {
        let tools = fields.remove("tools").unwrap_or(Value::Null);
        match form {
            Form::Messages => match fields.remove("messages") {
                Some(messages) => Ok(Self::Chat { messages, tools }),
                None => Err(missing("messages")),
            },
            Form::Conversations => {
                let system = optional_text(&mut fields, "system")?;
                let turns = fields.remove("conversations");
                let messages = messages(turns.ok_or_else(|| missing("conversations"))?, system)?;
                Ok(Self::Chat { messages, tools })
            }
            Form::Completion => Ok(Self::Completion {
                prompt: text(&mut fields, "prompt")?,
                completion: text(&mut fields, "completion")?,
            }),
            Form::Instruction => {
                let mut question = text(&mut fields, "instruction")?;
                let input = optional_text(&mut fields, "input")?;
                if !input.is_empty() {
                    question = format!("{question}\n\n{input}");
                }
                let answer = text(&mut fields, "output")?;
                let system = optional_text(&mut fields, "system")?;
                let turns = [("user", question), ("assistant", answer)];
                Ok(Self::Chat {
                    messages: with_system(system, turns.map(|(role, text)| message(role, text))),
                    tools,
                })
            }
            Form::Text => Ok(Self::Text(text(&mut fields, "text")?)),
        }
    }
}

/// ShareGPT's turns as chat messages.
fn messages(turns: Value, system: String) -> Result<Value, String> {
    let Value::Array(turns) = turns else {
        return Err("`conversations` must be a list of objects with `from` and `value`".to_owned());
    };
    let messages: Vec<Value> = turns
        .into_iter()
        .enumerate()
        .map(|(at, turn)| turn_message(turn).map_err(|e| format!("`conversations[{at}]` {e}")))
        .collect::<Result<_, _>>()?;
    let begins = |role: &str| messages.first().is_some_and(|first| first["role"] == role);
    match begins("system") {
        true => Ok(Value::Array(messages)),
        false => Ok(with_system(system, messages)),
    }
}

/// One turn, whose speaker and words may also be called `role` and `content`.
fn turn_message(turn: Value) -> Result<Value, String> {
    let Value::Object(mut fields) = turn else {
        return Err("must be an object with `from` and `value`".to_owned());
    };
    let mut take = |names: [&str; 2]| {
        let found = names.iter().find_map(|name| fields.remove(*name));
        match found {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(format!("has a `{}` that is no text", names[0])),
            None => Err(format!("has no `{}`", names[0])),
        }
    };
    let (from, value) = (take(["from", "role"])?, take(["value", "content"])?);
    let role = match from.as_str() {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
        "system" => "system",
        "tool" | "observation" => "tool",
        other => {
            return Err(format!(
                "is from `{other}`, which is not known; expected human, gpt, system or tool"
            ));
        }
    };
    Ok(message(role, value))
}

fn message(role: &str, content: String) -> Value {
    json!({ "role": role, "content": content })
}

fn with_system(system: String, messages: impl IntoIterator<Item = Value>) -> Value {
    let first = (!system.is_empty()).then(|| message("system", system));
    first.into_iter().chain(messages).collect()
}

fn text(fields: &mut Map<String, Value>, name: &str) -> Result<String, String> {
    match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("`{name}` must be a text; {EXPECTED}")),
        None => Err(missing(name)),
    }
}

/// A text that may be left out or null.
fn optional_text(fields: &mut Map<String, Value>, name: &str) -> Result<String, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(_) => text(fields, name),
    }
}

fn missing(name: &str) -> String {
    format!("`{name}` is missing; {EXPECTED}")
}
