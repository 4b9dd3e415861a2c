//! Provides chat templates as Hugging Face models ship them, and which bytes of a rendering the assistant wrote.

mod functions;
mod generation;
mod template;
mod turns;

pub use template::{ChatTemplate, RenderInput, Rendering};
pub use turns::{Conversation, render_conversation};

#[cfg(test)]
mod tests;
