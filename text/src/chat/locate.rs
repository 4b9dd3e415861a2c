//! Provides the place of each of the assistant's turns in a rendering, also where a template writes earlier turns in
//! another way than the last one.
//!
//! Most templates are *prefix-stable*: later messages do not change how earlier ones are written. A turn then begins where
//! the rendering of the messages before it, with the generation prompt, ends, and ends where the rendering with it ends.
//!
//! Others drop thoughts from earlier turns (Qwen3, DeepSeek R1), end the whole with a token (Phi-3), or move things about
//! (Mistral's tools). There the two renderings are compared from an *anchor* on: a place in a message that both have, found
//! by rendering once more with a mark in that message. What follows the anchor where the conversation stops must follow it
//! in the whole, too; a place that cannot be confirmed that way is not taken.

use std::ops::Range;

use serde_json::{Map, Value};

use super::{ChatTemplate, RenderInput, dialogue::Dialogue};
use crate::{
    Error, Result, TokenizerFiles,
    json::{self, Json, Object},
};

/// Private characters, which no template changes; a conversation with them in it has no anchors.
const MARK: &str = "\u{f8d0}\u{f8d1}\u{f8d0}";

/// How a message is marked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Marking {
    /// Behind its text.
    End,
    /// In the middle of its text, where what a template looks for at both ends stays as it is.
    Middle,
    /// Behind the name of the last tool that it calls.
    Call,
    /// In place of its text.
    Instead,
    /// Before this byte of its text.
    At(usize),
}

/// A conversation and its rendering.
pub(crate) struct Locator<'a> {
    tokenizer: &'a TokenizerFiles,
    template: &'a ChatTemplate,
    dialogue: Dialogue,
    messages: Vec<Value>,
    tools: Value,
    kwargs: Map<String, Value>,
    text: String,
    marked: Option<Vec<Range<usize>>>,
}

impl<'a> Locator<'a> {
    /// Renders the whole conversation.
    pub fn new(
        tokenizer: &'a TokenizerFiles,
        template: &'a ChatTemplate,
        dialogue: Dialogue,
    ) -> Result<Self> {
        let messages = dialogue.messages.iter().map(json::map);
        let messages: Vec<Value> = messages.map(Value::Object).collect();
        let tools = Value::from(&dialogue.tools);
        let kwargs = json::map(&dialogue.kwargs);
        let rendering = template.render(&RenderInput {
            messages: &Value::Array(messages.clone()),
            tools: &tools,
            kwargs: &kwargs,
            add_generation_prompt: false,
        })?;
        let marked = template
            .marks_generation(&tools)
            .then_some(rendering.generation);
        Ok(Self {
            tokenizer,
            template,
            dialogue,
            messages,
            tools,
            kwargs,
            text: rendering.text,
            marked,
        })
    }

    /// What the template marks itself, where it does.
    pub fn take_marked(&mut self) -> Option<Vec<Range<usize>>> {
        self.marked.take()
    }

    /// The rendering.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn into_text(self) -> String {
        self.text
    }

    /// What is rendered.
    pub fn dialogue(&self) -> &Dialogue {
        &self.dialogue
    }

    /// The bytes of message `index` that a model generates: behind the generation prompt, up to its end-of-turn token.
    pub fn turn(&self, index: usize) -> Result<Range<usize>> {
        match self.find(index) {
            Some(turn) => Ok(turn),
            None => Err(Error::ChatTemplate(format!(
                "it writes message {} in another way when more messages follow, so the assistant's words cannot be told apart \
                 in the whole; split the conversation so that it ends with that message, or use `prompt` and `completion`",
                index + 1
            ))),
        }
    }

    fn find(&self, index: usize) -> Option<Range<usize>> {
        let (start, (end, after_last)) = self.start(index).zip(self.end(index))?;
        let turn = self.text.get(start..end)?;
        let other = if self.ends_turn(turn) {
            None
        } else {
            // Tokens in the words of the next message say nothing about how it opens.
            let words = self.content_start(index + 1).filter(|&words| words >= end);
            let between = self.text.get(end..words.unwrap_or(self.text.len()))?;
            self.other_end(&after_last, between)
        };
        let turn = self.text.get(start..end + other.unwrap_or(0))?;
        Some(start..start + self.generated(turn).len())
    }

    fn start(&self, index: usize) -> Option<usize> {
        let prefix = self.render(index, true, None);
        if let Some(prefix) = prefix
            .as_deref()
            .filter(|prefix| self.text.starts_with(prefix))
        {
            return Some(prefix.len());
        }
        let Some(before) = index.checked_sub(1) else {
            return self.start_of_first(prefix.as_deref());
        };
        let prefix = prefix?;
        [Marking::End, Marking::Middle, Marking::Call]
            .into_iter()
            .find_map(|marking| {
                let (anchor, rest) = self.after_anchor(before, marking)?;
                let tail = tail(&prefix, &self.render(index, true, Some((before, marking)))?)?;
                if rest.starts_with(tail) {
                    return Some(anchor + tail.len());
                }
                // A generation prompt that opens a thought which history does not have, as R1's.
                let content = self.content_start(index)?;
                let between = self.text.get(anchor..content)?;
                (!between.is_empty() && tail.starts_with(between)).then_some(content)
            })
    }

    /// Where no message is before the turn and a template needs one, the generation prompt is what it adds to the turn.
    fn start_of_first(&self, prefix: Option<&str>) -> Option<usize> {
        let content = self.content_start(0)?;
        let before = self.text.get(..content)?;
        if !before.is_empty() && prefix.is_some_and(|prefix| prefix.starts_with(before)) {
            return Some(content);
        }
        let prompted = self.render(1, true, None)?;
        let prompt = prompted.strip_prefix(self.render(1, false, None)?.as_str())?;
        (!prompt.is_empty() && before.ends_with(prompt)).then_some(content)
    }

    /// Where message `index` ends as far as the whole has it as if it were the last, and what follows there as the last only.
    fn end(&self, index: usize) -> Option<(usize, String)> {
        let count = index + 1;
        if count == self.messages.len() {
            return Some((self.text.len(), String::new()));
        }
        let prefix = self.render(count, false, None)?;
        if self.text.starts_with(&prefix) {
            return Some((prefix.len(), String::new()));
        }
        [Marking::End, Marking::Middle, Marking::Call]
            .into_iter()
            .find_map(|marking| {
                let (anchor, rest) = self.after_anchor(index, marking)?;
                let tail = tail(&prefix, &self.render(count, false, Some((index, marking)))?)?;
                let mut stops = self.stops(tail);
                let stop = stops
                    .rfind(|&stop| tail.get(..stop).is_some_and(|tail| rest.starts_with(tail)))?;
                Some((anchor + stop, tail.get(stop..)?.to_owned()))
            })
    }

    /// Length of what ends a turn in history, at the start of `rest`, up to its special token, where another one or none ends
    /// it as the last, `tail`: OpenAI's `<|end|>` and `<|return|>`, or Qwen1.5, which writes `<|im_end|>` between messages.
    /// A token that opens the next message is no end, so one that does must follow where it is not the tokenizer's own end.
    fn other_end(&self, tail: &str, rest: &str) -> Option<usize> {
        if !self.after_token(tail).unwrap_or(tail).trim().is_empty() {
            return None;
        }
        let token = rest.trim_start();
        let after = self.after_token(token)?;
        let token = token.strip_suffix(after)?;
        let follows = self.after_token(after.trim_start()).is_some();
        // Cohere's messages open with two tokens.
        let opens = self.after_token(after).is_some() && self.opens_messages(token);
        let ends = self.tokenizer.eos_token().as_deref() == Some(token) || (follows && !opens);
        ends.then(|| rest.len() - after.len())
    }

    /// Whether the first message begins with this token.
    fn opens_messages(&self, token: &str) -> bool {
        let after_first = self.after_token(&self.text).unwrap_or_default();
        self.text.starts_with(token) || after_first.starts_with(token)
    }

    /// What follows the special token at the start of `text`.
    fn after_token<'t>(&self, text: &'t str) -> Option<&'t str> {
        let mut tokens = self.special_tokens();
        tokens.find_map(|token| text.strip_prefix(token))
    }

    /// Renders the first `count` messages, one of them marked; `None` where the template refuses them.
    pub(super) fn render(
        &self,
        count: usize,
        prompt: bool,
        marked: Option<(usize, Marking)>,
    ) -> Option<String> {
        let mut messages = self.messages.get(..count)?.to_vec();
        if let Some((index, marking)) = marked {
            let marked = mark(self.dialogue.messages.get(index)?, marking)?;
            *messages.get_mut(index)? = Value::Object(json::map(&marked));
        }
        let input = RenderInput {
            messages: &Value::Array(messages),
            tools: &self.tools,
            kwargs: &self.kwargs,
            add_generation_prompt: prompt,
        };
        self.template
            .render(&input)
            .ok()
            .map(|rendering| rendering.text)
    }

    /// A place in message `index` in the whole rendering, and what follows it.
    fn after_anchor(&self, index: usize, marking: Marking) -> Option<(usize, &str)> {
        let marked = self.render(self.messages.len(), false, Some((index, marking)))?;
        let rest = tail(&self.text, &marked)?;
        Some((self.text.len() - rest.len(), rest))
    }

    /// Where the text of message `index` begins in the whole rendering, as far as it is there.
    fn content_start(&self, index: usize) -> Option<usize> {
        let marked = self.render(self.messages.len(), false, Some((index, Marking::Instead)))?;
        let (before, after) = split_at_mark(&marked)?;
        let inside = self.text.strip_prefix(before)?;
        inside.ends_with(after).then_some(before.len())
    }

    /// Where a turn may end in `tail`, in order: beside its special tokens, and at its end.
    fn stops(&self, tail: &str) -> impl DoubleEndedIterator<Item = usize> + use<> {
        let mut stops = vec![tail.len()];
        for token in self.special_tokens() {
            for (at, _) in tail.match_indices(token) {
                stops.extend([at, at + token.len()]);
            }
        }
        stops.sort_unstable();
        stops.into_iter()
    }

    /// The part of a turn that a model generates: up to its end-of-turn token, without the line break that templates write
    /// after it. A turn without such a token is kept whole, since there its white space is all that ends it.
    fn generated<'t>(&self, turn: &'t str) -> &'t str {
        if self.ends_turn(turn) {
            turn.trim_end()
        } else {
            turn
        }
    }

    /// Whether the last word of a turn is a special token.
    fn ends_turn(&self, turn: &str) -> bool {
        let trimmed = turn.trim_end();
        self.special_tokens().any(|token| trimmed.ends_with(token))
    }

    fn special_tokens(&self) -> impl Iterator<Item = &str> {
        let added = self.tokenizer.tokenizer().get_added_vocabulary();
        let tokens = added.get_added_tokens_decoder().values();
        let special = tokens.filter(|token| token.special && !token.content.is_empty());
        special.map(|token| token.content.as_str())
    }
}

/// What follows the mark in `marked`, where it follows the same place in `plain`, the rendering without the mark.
///
/// Before that place both must be the same, but for white space that a template strips when nothing follows it.
fn tail<'t>(plain: &'t str, marked: &str) -> Option<&'t str> {
    let (before, after) = split_at_mark(marked)?;
    let head = plain.strip_suffix(after)?;
    let stripped = before.strip_prefix(head)?;
    let at = plain.len() - after.len();
    stripped.trim().is_empty().then(|| plain.get(at..))?
}

/// The text on both sides of the mark, where it is there once.
pub(super) fn split_at_mark(marked: &str) -> Option<(&str, &str)> {
    let (before, after) = marked.split_once(MARK)?;
    (!after.contains(MARK)).then_some((before, after))
}

/// The message with the mark in it; `None` where it has nothing that can be marked so.
fn mark(message: &Object, marking: Marking) -> Option<Object> {
    let mut message = message.clone();
    let place = match marking {
        Marking::Call => called_name(message.get_mut("tool_calls")?)?,
        Marking::End | Marking::Middle | Marking::Instead | Marking::At(_) => {
            text_of(message.get_mut("content")?)?
        }
    };
    match marking {
        Marking::End | Marking::Call => place.push_str(MARK),
        Marking::Instead => MARK.clone_into(place),
        Marking::Middle => {
            let middle = (1..=place.len() / 2).rfind(|&at| place.is_char_boundary(at))?;
            place.insert_str(middle, MARK);
        }
        Marking::At(at) => {
            place.get(at..)?;
            place.insert_str(at, MARK);
        }
    }
    Some(message)
}

/// A message's text, or the last text among its parts.
fn text_of(content: &mut Json) -> Option<&mut String> {
    match content {
        Json::String(text) => Some(text),
        Json::Array(parts) => parts.iter_mut().rev().find_map(|part| match part {
            Json::Object(fields) => text_of(fields.get_mut("text")?),
            _ => None,
        }),
        _ => None,
    }
}

fn called_name(calls: &mut Json) -> Option<&mut String> {
    let Json::Array(calls) = calls else {
        return None;
    };
    let Json::Object(call) = calls.last_mut()? else {
        return None;
    };
    let named = if call.contains_key("function") {
        match call.get_mut("function")? {
            Json::Object(function) => function,
            _ => return None,
        }
    } else {
        call
    };
    match named.get_mut("name")? {
        Json::String(name) => Some(name),
        _ => None,
    }
}
