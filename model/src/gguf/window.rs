/*! Provides the attention window that a GGUF file names.

llama.cpp computes full attention for `llama`, `qwen2` and `qwen3` files, and its converter writes no window for them. Mistral
7B v0.1, which attends to the latest 4096 positions, is a `llama` file that does not mention it, and is read without a window
here as there: up to 4096 tokens that is the same. Another converter's file may name one:

| window | what is done |
|---|---|
| 0, or no shorter than the context | none: it leaves out nothing |
| of a `llama` file | every layer has it, the position itself included: the model is Mistral's, for Llama has none |
| of a `qwen2` or `qwen3` file | refused: these have it in some layers, and the file does not say in which |
*/

use super::value::Metadata;
use crate::{Architecture, Result};

/// The window of every layer, below `context` positions.
///
/// # Errors
/// A window of layers that are not known, by its key.
pub(super) fn window(
    metadata: &Metadata<'_>,
    architecture: Architecture,
    context: u64,
) -> Result<Option<u64>> {
    let key = format!("{}.attention.sliding_window", architecture.name());
    if metadata.get(&key).is_none() {
        return Ok(None);
    }
    match metadata.unsigned(&key)? {
        window if window == 0 || window >= context => Ok(None),
        window if architecture == Architecture::Llama => Ok(Some(window)),
        window => {
            let problem = format!(
                "is {window}, and the file does not say which layers attend to such a window; take the model's directory with its \
                 config.json"
            );
            Err(metadata.fault(&key, problem))
        }
    }
}
