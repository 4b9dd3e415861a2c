/*! What every program here shares at its edges.

```text
 SIGINT, SIGTERM, SIGHUP ──> shutdown ──> a command that finishes its step ──> Outcome ──> exit status
                                                        │
                                                        ├──> console: a result, a report, a word to people
                                                        ├──> log: what happens meanwhile
                                                        └──> output: the files that it was told to write
```

Nothing here ends a program because something cannot be printed, and nothing that is no file is replaced by one.
*/

pub mod shutdown;

pub mod console;
pub mod log;
pub mod memory;
pub mod output;
pub mod settings;

pub use shutdown::{Outcome, Shutdown, Signal};
