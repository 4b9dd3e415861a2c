//! Provides chat templates as Hugging Face models ship them, and which bytes of a rendering the assistant wrote.

mod engine;
mod functions;
mod generation;
mod json;
mod kwargs;
mod methods;
mod python;
mod source;
mod tags;
mod template;
mod turns;
mod values;

pub use kwargs::ChatTemplateKwargs;
pub use template::{ChatTemplate, RenderInput, Rendering};
pub use turns::{Conversation, render_conversation};

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;
