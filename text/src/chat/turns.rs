//! Provides which bytes of a rendered conversation the assistant wrote, found by rendering its prefixes.

use std::ops::Range;

use serde_json::{Map, Value};

use super::RenderInput;
use crate::{Error, Result, TokenizerFiles, limits::MESSAGES_MAX};

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The rendering.
    pub text: String,
    /// Bytes of every assistant turn: what the model would have to generate, its end-of-turn token included.
    pub assistant: Vec<Range<usize>>,
}

/// Renders a conversation and finds the assistant's turns in it.
///
/// Turn i begins where the rendering of the messages before it, with the generation prompt, ends; it ends where the
/// rendering up to and with it ends. That holds for templates that are *prefix-stable*: later messages do not change how
/// earlier ones are written.
///
/// # Errors
/// `ChatTemplate` where messages are malformed, there is no assistant turn, or the template is not prefix-stable.
pub fn render_conversation(
    tokenizer: &TokenizerFiles,
    messages: &Value,
    tools: &Value,
) -> Result<Conversation> {
    let list = checked(messages)?;
    let template = tokenizer.template()?;
    let kwargs = &Map::new();
    let input = RenderInput {
        messages,
        tools,
        kwargs,
        add_generation_prompt: false,
    };
    let text = template.render(&input)?.text;
    let prefix_end = |count: usize, prompt: bool| -> Result<usize> {
        let prefix = Value::Array(list.iter().take(count).cloned().collect());
        let input = RenderInput {
            messages: &prefix,
            add_generation_prompt: prompt,
            ..input
        };
        let rendered = template.render(&input)?.text;
        if text.starts_with(&rendered) {
            Ok(rendered.len())
        } else {
            Err(unstable(count, prompt))
        }
    };
    let mut assistant = Vec::new();
    for (index, message) in list.iter().enumerate() {
        if role(message) != Some("assistant") {
            continue;
        }
        let start = prefix_end(index, true)?;
        let end = if index + 1 == list.len() {
            text.len()
        } else {
            prefix_end(index + 1, false)?
        };
        let turn = text
            .get(start..end)
            .ok_or_else(|| unstable(index + 1, false))?;
        let end = start + generated(tokenizer, turn).len();
        assistant.push(start..end);
    }
    Ok(Conversation { text, assistant })
}

/// The part of a turn that a model generates: up to its end-of-turn token, without the line break that templates write
/// after it. A turn without such a token is kept whole, since there its white space is all that ends it.
fn generated<'a>(tokenizer: &TokenizerFiles, turn: &'a str) -> &'a str {
    let trimmed = turn.trim_end();
    let added = tokenizer.tokenizer().get_added_vocabulary();
    let mut tokens = added.get_added_tokens_decoder().values();
    let ends_in_special =
        tokens.any(|token| token.special && trimmed.ends_with(token.content.as_str()));
    if ends_in_special { trimmed } else { turn }
}

fn checked(messages: &Value) -> Result<&[Value]> {
    let wrong = |reason: String| Err(Error::ChatTemplate(reason));
    let Some(list) = messages.as_array() else {
        return wrong("`messages` must be a list of objects with `role` and `content`".to_owned());
    };
    if list.len() > MESSAGES_MAX {
        let reason = format!("{} messages, above the limit of {MESSAGES_MAX}", list.len());
        return wrong(reason);
    }
    if let Some(at) = list.iter().position(|message| role(message).is_none()) {
        return wrong(format!(
            "`messages[{at}]` has no `role`, which must be a text"
        ));
    }
    if !list
        .iter()
        .any(|message| role(message) == Some("assistant"))
    {
        return wrong(
            "`messages` has no turn with the role \"assistant\", so nothing to learn".to_owned(),
        );
    }
    Ok(list)
}

fn role(message: &Value) -> Option<&str> {
    message.get("role").and_then(Value::as_str)
}

fn unstable(count: usize, prompt: bool) -> Error {
    let prompt = if prompt {
        " and the generation prompt"
    } else {
        ""
    };
    Error::ChatTemplate(format!(
        "it writes the first {count} messages{prompt} in another way when more messages follow, so the assistant's turns \
         cannot be told apart; split the conversation so that it ends with its first assistant turn, or use `prompt` and \
         `completion`"
    ))
}
