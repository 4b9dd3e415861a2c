/*! The teacher's process: runs a model over a corpus once and serves what it says about every token.

```text
 cli, config ──> serve ──> listener, connections, health ────────────────────────────────────┐
                   │                                                                         │
                   └─> load: tokenizer, corpus (distill-text), weights (distill-model)       │
                                      │                                                      │
 corpus ──> plan ──> production ──> forward ──> selection ──> frames ──> store ──> service ──┴──> gRPC
            order,   what readers   backbone,   top-k, draws, encode     spool     streams,
            batches  need next      head chunks statistics               file      basis, scores
                     ^              ^
                     │              └─ basis, sketch: coordinates of the logits, and the matrix that reads them
                     ├─ answers: prompts, between the batches
                     └─ lease: whose turn the device is, where teacher and trainers share one
```

The teacher runs on a thread of its own, only as far ahead of its readers as the queue allows; whatever it has computed
is kept, so that a second epoch and a second trainer are answered without it.
*/

pub mod cli;
pub mod config;

mod error;
pub mod plan;

pub mod backbone;
pub mod forward;

pub mod selection;

pub mod basis;
pub mod sketch;

pub mod frames;
pub mod store;
pub mod vocabulary;

pub mod cache;

pub mod answers;
pub mod lease;
pub mod production;

pub mod connections;
pub mod load;
pub mod service;

pub mod fidelity;
pub mod inspect;
pub mod listener;
mod monitor;
pub mod precompute;
pub mod serve;

pub mod printable;
pub mod progress;
pub mod report;
pub use distill_program::shutdown;

#[cfg(test)]
mod testing;

pub use error::{Error, Result};
pub use serve::{Server, run};
