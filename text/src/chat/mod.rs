//! Provides chat templates as Hugging Face models ship them, and which bytes of a rendering the assistant wrote.

mod dialogue;
mod functions;
mod generation;
mod locate;
mod template;
mod turns;

use minijinja::Value as Jinja;

pub(crate) use dialogue::Dialogue;
pub(crate) use template::{ChatTemplate, RenderInput};
pub(crate) use turns::{Conversation, render_conversation};

#[cfg(test)]
mod tests;
#[cfg(test)]
mod turns_tests;
