//! Provides what is asked: prompts of the command line and of a file, as the ids that a model reads.

use std::path::Path;

use distill_text::TokenizerFiles;
use serde_json::{Map, Value, json};

use crate::{Error, Result, files};

/// Longest file of prompts.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Characters of a prompt that stand for it in messages.
const SHOWN_CHARS: usize = 60;

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// As it was given: a text, or the last message of a conversation.
    pub text: String,
    /// What the model reads.
    pub ids: Vec<u32>,
}

impl Question {
    /// Its beginning, in one line.
    pub fn title(&self) -> String {
        let line = self.text.split_whitespace().collect::<Vec<_>>().join(" ");
        if line.chars().count() <= SHOWN_CHARS {
            return line;
        }
        line.chars().take(SHOWN_CHARS).chain(['…']).collect()
    }
}

/// What turns prompts into ids.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub tokenizer: &'a TokenizerFiles,
    /// Positions of the model.
    pub positions: usize,
    /// Whether a text is a user's turn, by the chat template.
    pub chat: bool,
    /// What a conversation begins with.
    pub system: Option<&'a str>,
}

impl Reader<'_> {
    /// A text as it is, or as a user's turn.
    ///
    /// # Errors
    /// An empty prompt, one that is too long, or one that the chat template or the tokenizer refuses; the reason alone.
    pub fn text(&self, text: &str) -> Result<Question, String> {
        if text.trim().is_empty() {
            return Err("the prompt is empty; give it some text".into());
        }
        if self.chat {
            return self.messages(vec![json!({"role": "user", "content": text})]);
        }
        let mut ids = self.tokenizer.prefix_ids().to_vec();
        ids.extend(self.encode(text)?);
        self.question(text, ids)
    }

    /// A conversation up to where the assistant's next turn begins; a last turn of the assistant is left out.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub fn messages(&self, mut messages: Vec<Value>) -> Result<Question, String> {
        let role = |message: &Value| {
            message
                .get("role")
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        while messages.last().and_then(role).as_deref() == Some("assistant") {
            messages.pop();
        }
        let Some(last) = messages.last() else {
            return Err("there is no message to answer; end with a user's".into());
        };
        let text = last.get("content").and_then(Value::as_str);
        let text = text.unwrap_or_default().to_owned();
        let has_system = messages.first().and_then(role).as_deref() == Some("system");
        if let Some(system) = self.system.filter(|_| !has_system) {
            messages.insert(0, json!({"role": "system", "content": system}));
        }
        let rendered = self.tokenizer.render_chat(&Value::Array(messages), true);
        let rendered = rendered.map_err(|e| e.to_string())?;
        self.question(&text, self.encode(&rendered)?)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoded = self.tokenizer.encode(text).map_err(|e| e.to_string())?;
        Ok(encoded.ids)
    }

    fn question(&self, text: &str, ids: Vec<u32>) -> Result<Question, String> {
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
        Ok(Question {
            text: text.to_owned(),
            ids,
        })
    }

    /// The prompts of a JSON Lines file: `prompt`, a text or a list of messages, or `messages`.
    ///
    /// # Errors
    /// The line that is no prompt, and why.
    pub fn file(&self, path: &Path) -> Result<Vec<Question>> {
        let text = files::read_text(path, FILE_BYTES_MAX)?;
        let mut questions = Vec::new();
        // As of a corpus, a file's mark of its encoding is no text.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        for (at, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
        {
            questions.push(self.line(line).map_err(|reason| {
                Error::Config(format!("{}:{}: {reason}", path.display(), at + 1))
            })?);
        }
        if questions.is_empty() {
            return Err(Error::file(path, "there is no prompt in this file"));
        }
        Ok(questions)
    }

    fn line(&self, line: &str) -> Result<Question, String> {
        const EXPECTED: &str = "expected an object with `prompt` (a text or a list of messages) or `messages` (a list)";
        let fields: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| format!("{e}; {EXPECTED}"))?;
        let given = ["prompt", "messages"].into_iter().filter_map(|name| {
            let value = fields.get(name).filter(|value| !value.is_null())?;
            Some((name, value))
        });
        let given: Vec<_> = given.collect();
        match given.first() {
            Some(_) if given.len() > 1 => Err(format!(
                "there are both `prompt` and `messages`; {EXPECTED}"
            )),
            Some((_, Value::String(text))) => self.text(text),
            Some((name, Value::Array(messages))) => {
                if let Some(wrong) = messages.iter().position(|message| !is_message(message)) {
                    return Err(format!(
                        "`{name}[{wrong}]` is no object with a `role`; {EXPECTED}"
                    ));
                }
                self.messages(messages.clone())
            }
            Some((name, _)) => Err(format!("`{name}` is neither a text nor a list; {EXPECTED}")),
            None => Err(EXPECTED.into()),
        }
    }
}

fn is_message(message: &Value) -> bool {
    message.get("role").is_some_and(Value::is_string)
}
