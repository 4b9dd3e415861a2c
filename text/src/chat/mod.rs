//! Provides chat templates as Hugging Face models ship them, and which bytes of a rendering are to be learnt.

mod contents;
mod dialogue;
mod engine;
mod filters;
mod functions;
mod generation;
mod json;
mod kwargs;
mod locate;
mod methods;
mod python;
mod source;
mod spaces;
mod tags;
mod template;
mod turns;
mod values;

pub(crate) use contents::Contents;
pub(crate) use dialogue::Dialogue;
pub use kwargs::ChatTemplateKwargs;
pub use template::{ChatTemplate, RenderInput, Rendering};
pub(crate) use turns::{Conversation, render_conversation, render_with_contents};
pub(crate) use values::NUMBER;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod turns_tests;
