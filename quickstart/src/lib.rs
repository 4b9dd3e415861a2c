/*! Provides the quickstart: the main job on models and problems that the repository makes itself.

```text
 template ──> story (numbers, steps) ──> wording (English | Chinese) ──> problem ──> train / held-out JSONL
                                                                           │
                                                       tokenizer (BPE) <───┘
 teacher, student, lessons ──> run: both programs, the judge over several losses ──> tables, pages, summary.json
```

Nothing is downloaded and nothing is copied: the problems come from [`corpus`], seeded, and the small tokenizer of the
embedded models is trained on them by [`tokenizer`].
*/

pub mod cli;

pub mod corpus;
mod error;
pub mod tokenizer;

pub mod run;
pub mod settings;

pub use error::{Error, Result};
