//! Provides a conversation before it is rendered: what a row says, checked, and what of it is to be learnt.

use crate::{
    json::{Json, Object, parse, take},
    limits::MESSAGES_MAX,
};

/// Messages and what else a template reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dialogue {
    pub messages: Vec<Object>,
    /// Of every message, whether it is the assistant's and not taken out of the targets.
    pub learnt: Vec<bool>,
    /// A list of objects, or null for none.
    pub tools: Json,
    /// Further variables of the template.
    pub kwargs: Object,
}

impl Dialogue {
    /// Keys of a message that say whether its words are learnt; a template does not see them.
    const SWITCHES: [&str; 3] = ["weight", "train", "loss"];

    /// Takes the messages of the field `name`, every turn of the assistant to be learnt; the error is the reason alone.
    pub fn read(name: &str, messages: Json) -> Result<Self, String> {
        let mut dialogue = Self {
            messages: Vec::new(),
            learnt: Vec::new(),
            tools: Json::Null,
            kwargs: Object::new(),
        };
        dialogue.append(name, messages)?;
        Ok(dialogue)
    }

    /// Takes messages that only lead to the ones that are learnt.
    pub fn after_prompt(name: &str, messages: Json) -> Result<Self, String> {
        let mut dialogue = Self::read(name, messages)?;
        dialogue.learnt.fill(false);
        Ok(dialogue)
    }

    /// Takes more messages.
    pub fn append(&mut self, name: &str, messages: Json) -> Result<(), String> {
        let Json::Array(list) = messages else {
            return Err(format!(
                "`{name}` must be a list of objects with `role` and `content`, but is {}",
                messages.kind()
            ));
        };
        let count = self.messages.len() + list.len();
        if count > MESSAGES_MAX {
            return Err(format!(
                "{count} messages, above the limit of {MESSAGES_MAX}"
            ));
        }
        for (at, message) in list.into_iter().enumerate() {
            let (message, learnt) =
                put_right(message).map_err(|reason| format!("`{name}[{at}]` {reason}"))?;
            self.messages.push(message);
            self.learnt.push(learnt);
        }
        Ok(())
    }

    /// The last message of the assistant.
    pub fn last_turn_of_assistant(&self) -> Option<usize> {
        let mut messages = self.messages.iter();
        messages.rposition(|message| role(message) == Some("assistant"))
    }

    /// Takes `tools` and `chat_template_kwargs` out of a row's fields, and checks that there is something to learn.
    pub fn with_extras(mut self, fields: &mut Object) -> Result<Self, String> {
        if !self
            .messages
            .iter()
            .any(|message| role(message) == Some("assistant"))
        {
            return Err("no turn with the role \"assistant\", so nothing to learn".to_owned());
        }
        self.tools = tools(take(fields, "tools"))?;
        match take(fields, "chat_template_kwargs") {
            None => {}
            Some(value) if value.unusable().is_some() => {
                return Err(format!(
                    "`chat_template_kwargs` has {}",
                    value.unusable().unwrap_or_default()
                ));
            }
            Some(Json::Object(kwargs)) => self.kwargs = kwargs,
            Some(other) => {
                let found = other.kind();
                return Err(format!(
                    "`chat_template_kwargs` must be an object, but is {found}"
                ));
            }
        }
        Ok(self)
    }
}

/// The role of a message that was put right.
pub(super) fn role(message: &Object) -> Option<&str> {
    message.get("role").and_then(Json::as_str)
}

/// A message without nulls and switches, and whether it is learnt.
fn put_right(message: Json) -> Result<(Object, bool), String> {
    let Json::Object(mut fields) = message else {
        return Err(format!(
            "must be an object with `role` and `content`, but is {}",
            message.kind()
        ));
    };
    // Of OpenAI's and pydantic's messages, and of a column of structs, which has every key in every row.
    fields.retain(|_, value| !value.is_null());
    let mut unusable = fields
        .iter()
        .filter_map(|(name, value)| Some((name, value.unusable()?)));
    if let Some((name, reason)) = unusable.next() {
        return Err(format!("has in `{name}` {reason}"));
    }
    let mut learnt = true;
    for name in Dialogue::SWITCHES {
        if let Some(value) = fields.shift_remove(name) {
            learnt &= is_on(&value)
                .ok_or_else(|| format!("has a `{name}` that is neither 0 nor 1, true nor false"))?;
        }
    }
    match role(&fields) {
        Some(role) => {
            let learnt = learnt && role == "assistant";
            Ok((fields, learnt))
        }
        None => Err("has no `role`, which must be a text".to_owned()),
    }
}

fn is_on(value: &Json) -> Option<bool> {
    match value {
        Json::Bool(on) => Some(*on),
        Json::Integer(0) => Some(false),
        Json::Integer(1) => Some(true),
        Json::Float(0.0) => Some(false),
        Json::Float(1.0) => Some(true),
        _ => None,
    }
}

/// The list of tools, which may be spelled as JSON text; null where there are none.
fn tools(found: Option<Json>) -> Result<Json, String> {
    let list = match found {
        Some(Json::String(text)) if text.trim().is_empty() => Json::Null,
        Some(Json::String(text)) => parse(&text)
            .map_err(|reason| format!("`tools` is a text and no list in it: {reason}"))?,
        Some(value) => value,
        None => Json::Null,
    };
    if let Some(reason) = list.unusable() {
        return Err(format!("`tools` has {reason}"));
    }
    match &list {
        Json::Null => Ok(list),
        Json::Array(tools) if tools.is_empty() => Ok(Json::Null),
        Json::Array(tools) => match tools.iter().find(|tool| !matches!(tool, Json::Object(_))) {
            None => Ok(list),
            Some(tool) => Err(format!(
                "`tools` must be a list of objects, but {} is in it",
                tool.kind()
            )),
        },
        other => Err(format!(
            "`tools` must be a list of objects, or such a list as JSON text, but is {}",
            other.kind()
        )),
    }
}
