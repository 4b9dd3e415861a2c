//! Provides which bytes of a rendered conversation are to be learnt: what the template marks, or the assistant's turns.

use std::ops::Range;

use super::{
    contents::Contents,
    dialogue::{Dialogue, role},
    locate::Locator,
};
use crate::{Error, Result, TokenizerFiles};

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conversation {
    /// The rendering.
    pub text: String,
    /// Bytes that are to be learnt, in order: what the model would have to generate, ends of turns included.
    pub targets: Vec<Range<usize>>,
}

/// Renders a conversation and finds what of it is to be learnt.
///
/// A template with `{% generation %}` says so itself, as `return_assistant_tokens_mask` of `transformers` reads it; in other
/// templates it is the assistant's turns, from the end of the generation prompt to the end-of-turn token.
///
/// # Errors
/// `ChatTemplate` where the template refuses the messages, or where a turn cannot be told apart in the rendering.
pub(crate) fn render_conversation(
    tokenizer: &TokenizerFiles,
    dialogue: Dialogue,
) -> Result<Conversation> {
    let mut locator = Locator::new(tokenizer, tokenizer.template()?, dialogue)?;
    Ok(Conversation {
        targets: find_targets(&mut locator)?,
        text: locator.into_text(),
    })
}

/// As [`render_conversation`], with what finds the words of single messages in it.
///
/// # Errors
/// As [`render_conversation`].
pub(crate) fn render_with_contents(
    tokenizer: &TokenizerFiles,
    dialogue: Dialogue,
) -> Result<(Conversation, Contents<'_>)> {
    let mut locator = Locator::new(tokenizer, tokenizer.template()?, dialogue)?;
    let conversation = Conversation {
        targets: find_targets(&mut locator)?,
        text: locator.text().to_owned(),
    };
    Ok((conversation, Contents::new(locator)))
}

fn find_targets(locator: &mut Locator<'_>) -> Result<Vec<Range<usize>>> {
    let marked = locator.take_marked();
    let locator = &*locator;
    let dialogue = locator.dialogue();
    let turns = |learnt: bool| {
        let messages = dialogue.messages.iter().zip(&dialogue.learnt).enumerate();
        messages.filter(move |(_, (message, is_learnt))| {
            **is_learnt == learnt && role(message) == Some("assistant")
        })
    };
    let targets = match marked {
        Some(marked) => {
            let mut targets = marked;
            for (index, _) in turns(false) {
                let turn = locator.turn(index)?;
                targets.retain(|block| block.end <= turn.start || turn.end <= block.start);
            }
            targets
        }
        None => turns(true)
            .map(|(index, _)| locator.turn(index))
            .collect::<Result<_>>()?,
    };
    let ordered = targets.windows(2).all(|pair| match pair {
        [one, next] => one.end <= next.start,
        _ => true,
    });
    if !ordered {
        let reason = "it writes the assistant's turns in another order than they have, so they cannot be told apart";
        return Err(Error::ChatTemplate(reason.to_owned()));
    }
    Ok(targets)
}
