/*! Distils a 4-bit student from streamed logit blocks with a chunked optimal-transport loss.

```text
 args, TOML ──> config
 teacher ──gRPC──> client: frames ──┬── align, if the student has another tokenizer
                                    │
 student directory ──> student ─────┼──> train: forward ──> loss: CE + KL + OT, dL/dhidden ──> backward
                                    │           ^                                                 │ gradients; ranks: their sum
                                    │           └──────── adapters <── optimizer <── guards <─────┘
                                    ├──> run: metrics.jsonl, progress, adapter/ ──> export: base + adapter as one model
                                    ├──> checkpoint: what --resume goes on from
                                    ├──> eval: CE, perplexity, KL to the teacher
                                    └──> generate: answers to prompts, chat
 config.json, text ──> pretrain: a whole small model, by cross-entropy alone
 safetensors, GGUF ──> quantize: a 4-bit base, with all or some of the layers
 run directories ──> report: report.html
 arms, seeds ──> ablate: a run each, paired differences, what may be claimed
 two config.json ──> plan: what fits on the card          dense tensors ──> losses: any setting, checked from outside
```

The modules are listed in this order. `config::TrainConfig` -> `validate` -> [`train::run`] is the whole of a run.
*/

pub mod cli;
pub mod config;
mod error;
mod files;
mod random;
pub use distill_program::shutdown;

pub mod align;
pub mod checkpoint;
pub mod client;
pub mod loss;
pub mod optimizer;
pub mod ranks;
pub mod run;
pub mod student;
pub mod train;

pub mod ablate;
pub mod eval;
pub mod export;
pub mod generate;
pub mod loss_command;
mod model_files;
pub mod plan;
pub mod pretrain;
pub mod push;
pub mod quantize;
pub mod report;
#[cfg(test)]
mod test_models;

pub use error::{Error, Result};
