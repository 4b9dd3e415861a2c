/*! What every program here shares at its edges.

```text
 SIGINT, SIGTERM, SIGHUP ──> shutdown ──> a command that finishes its step ──> Outcome ──> exit status
```
*/

pub mod shutdown;

pub use shutdown::{Outcome, Shutdown, Signal};
