//! Provides the forms a line of JSONL can have.

use serde_json::{Map, Value};

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

/// What a line must be, for error messages.
const EXPECTED: &str = "expected a JSON object with `messages` (a list), with `prompt` and `completion` (texts), or with `text` (a text)";

impl Document {
    /// Reads a line; the error is the reason alone.
    pub fn parse(line: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(line).map_err(|e| format!("not JSON: {e}; {EXPECTED}"))?;
        let Value::Object(mut fields) = value else {
            return Err(EXPECTED.to_owned());
        };
        if let Some(messages) = fields.remove("messages") {
            let tools = fields.remove("tools").unwrap_or(Value::Null);
            return Ok(Self::Chat { messages, tools });
        }
        if fields.contains_key("completion") {
            return Ok(Self::Completion {
                prompt: text(&mut fields, "prompt")?,
                completion: text(&mut fields, "completion")?,
            });
        }
        if fields.contains_key("text") {
            return Ok(Self::Text(text(&mut fields, "text")?));
        }
        let found: Vec<&str> = fields.keys().take(8).map(String::as_str).collect();
        Err(format!("{EXPECTED}, found the fields {found:?}"))
    }
}

fn text(fields: &mut Map<String, Value>, name: &str) -> Result<String, String> {
    match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("`{name}` must be a text; {EXPECTED}")),
        None => Err(format!("`{name}` is missing; {EXPECTED}")),
    }
}
