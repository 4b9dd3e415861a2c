//! Provides what is asked: prompts of the command line and of a file, with the ids that a student reads.

use std::path::Path;

use distill_text::{PromptReader, check_messages, check_prompt};
use serde_json::{Map, Value, json};

use crate::{Error, Result, files};

/// Longest file of prompts.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Characters of a prompt that stand for it in messages.
const SHOWN_CHARS: usize = 60;

/// What a prompt is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    /// A text that is continued as it is.
    Text(String),
    /// A conversation, to be rendered by the chat template of who answers.
    Messages(Vec<Value>),
}

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// As it was given: a text, or the last message of a conversation.
    pub text: String,
    /// What a teacher is sent.
    pub prompt: Prompt,
    /// What the student reads; nothing where there is none.
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

/// What makes questions of prompts.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    /// For the student's ids; none where a teacher answers alone, which reads prompts itself.
    pub student: Option<PromptReader<'a>>,
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
        check_prompt(text)?;
        if self.chat {
            return self.messages(vec![json!({"role": "user", "content": text})]);
        }
        Ok(Question {
            text: text.to_owned(),
            ids: self.ids(|student| student.text(text))?,
            prompt: Prompt::Text(text.to_owned()),
        })
    }

    /// A conversation up to where the assistant's next turn begins; a last turn of the assistant is left out.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub fn messages(&self, mut messages: Vec<Value>) -> Result<Question, String> {
        let is_by = |message: Option<&Value>, role: &str| {
            message.and_then(|message| message.get("role")?.as_str()) == Some(role)
        };
        while is_by(messages.last(), "assistant") {
            messages.pop();
        }
        check_messages(&messages)?;
        let last = messages.last().and_then(|last| last.get("content"));
        let text = last.and_then(Value::as_str).unwrap_or_default().to_owned();
        let has_system = is_by(messages.first(), "system");
        if let Some(system) = self.system.filter(|_| !has_system) {
            messages.insert(0, json!({"role": "system", "content": system}));
        }
        Ok(Question {
            text,
            ids: self.ids(|student| student.messages(messages.clone()))?,
            prompt: Prompt::Messages(messages),
        })
    }

    fn ids(
        &self,
        read: impl FnOnce(PromptReader<'_>) -> Result<Vec<u32>, String>,
    ) -> Result<Vec<u32>, String> {
        self.student.map_or(Ok(Vec::new()), read)
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
            Some(("prompt", Value::String(text))) => self.text(text),
            Some((name, Value::Array(messages))) => {
                let read = self.messages(messages.clone());
                read.map_err(|reason| format!("`{name}`: {reason}"))
            }
            Some((name, _)) => Err(format!("`{name}` is neither; {EXPECTED}")),
            None => Err(EXPECTED.into()),
        }
    }
}
