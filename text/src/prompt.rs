//! Provides prompts as the ids that a model reads: a text, or a conversation by the chat template.

use serde_json::Value;

use crate::TokenizerFiles;

/// Turns prompts into ids.
#[derive(Clone, Copy)]
pub struct PromptReader<'a> {
    /// Of the model that is to answer.
    pub tokenizer: &'a TokenizerFiles,
    /// Positions of that model.
    pub positions: usize,
}

impl PromptReader<'_> {
    /// A text as it is, behind what the tokenizer puts before every text.
    ///
    /// # Errors
    /// An empty prompt, one that is too long, or one that the tokenizer refuses; the reason alone.
    pub fn text(&self, text: &str) -> Result<Vec<u32>, String> {
        check_prompt(text)?;
        let mut ids = self.tokenizer.prefix_ids().to_vec();
        ids.extend(self.encode(text)?);
        self.checked(ids)
    }

    /// A conversation, objects with a `role`, up to where the assistant's next turn begins.
    ///
    /// # Errors
    /// As [`Self::text`], and one that the chat template refuses.
    pub fn messages(&self, messages: Vec<Value>) -> Result<Vec<u32>, String> {
        check_messages(&messages)?;
        let rendered = self.tokenizer.render_chat(&Value::Array(messages), true);
        let rendered = rendered.map_err(|e| e.to_string())?;
        self.checked(self.encode(&rendered)?)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoded = self.tokenizer.encode(text).map_err(|e| e.to_string())?;
        Ok(encoded.ids)
    }

    fn checked(&self, ids: Vec<u32>) -> Result<Vec<u32>, String> {
        let (length, room) = (ids.len(), self.positions);
        if ids.is_empty() {
            return Err(
                "the tokenizer makes no token of the prompt; give it some other text".into(),
            );
        }
        if length >= room {
            return Err(format!(
                "the prompt has {length} tokens, and prompt and answer together may have {room} (max_position_embeddings of \
                 config.json); shorten the prompt"
            ));
        }
        Ok(ids)
    }
}

/// Refuses a text in which nothing is asked.
///
/// # Errors
/// That, with what to do.
pub fn check_prompt(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("the prompt is empty; give it some text".into());
    }
    Ok(())
}

/// Refuses what is no conversation that can be answered.
///
/// # Errors
/// That there is no message, or which one is none.
pub fn check_messages(messages: &[Value]) -> Result<(), String> {
    if messages.is_empty() {
        return Err("there is no message to answer; end with a user's".into());
    }
    let is_message = |message: &Value| message.get("role").is_some_and(Value::is_string);
    match messages.iter().position(|message| !is_message(message)) {
        Some(wrong) => Err(format!("message {wrong} is no object with a `role`")),
        None => Ok(()),
    }
}
