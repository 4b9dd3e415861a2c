/*! What every program here shares at its edges.

```text
 SIGINT, SIGTERM, SIGHUP ──> shutdown ──> a command that finishes its step ──> Outcome ──> exit status
                                                        │
                                                        ├──> console: a result, a report, a word to people
                                                        ├──> log, progress: what happens meanwhile
                                                        ├──> output: the files that it was told to write
                                                        ├──> files: the files that it was told to read
                                                        ├──> inherited: what it shares with processes that it starts
                                                        └──> monitor: what Prometheus reads meanwhile
```

`random` is the generator whose numbers are part of captures, corpora and answers.

Nothing here ends a program because something cannot be printed, and nothing that is no file is replaced by one.
*/
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

pub mod shutdown;

mod error;

pub mod console;
pub mod files;
pub mod inherited;
pub mod lock;
pub mod log;
pub mod memory;
pub mod monitor;
pub mod output;
pub mod progress;
pub mod random;
pub mod settings;
pub mod units;

pub use error::FileError;
pub use lock::Lock;
pub use shutdown::{Outcome, Shutdown, Signal};
