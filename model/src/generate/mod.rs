/*! Provides generation: prompts of unlike length are continued together, token by token.

```text
 Prompt ─> waiting ─> a free slot of the cache ─ its tokens in one pass ─┐
                                                                         ├─> logits ─> Sampling ─> Written
 Running, one in each slot ─ the last token of each in one pass ─────────┘               │
                      └────────────── goes on <── not at an end, not at its limit <──────┘
```

The weights are what they are in training: quantised, with adapters beside them. The cache is allocated once; who finishes leaves its
slot to who waits. The random number of a token is a function of its sequence's seed and its place in it. In f32 on the CPU, so are
the logits of its sequence alone: an answer does not depend on who shares its batch. A card chooses where its logits are, by the same
random numbers: ids alone come to the host.
*/

mod card;
mod draw;
mod generator;
mod sampling;
#[cfg(test)]
mod tests;

pub use draw::uniform;
pub use generator::{Finish, Generator, Options, Prompt, Written};
pub use sampling::Sampling;
