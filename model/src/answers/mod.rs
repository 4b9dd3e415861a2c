/*! Provides answers as text, for both programs: a student's here, a teacher's by address.

```text
 text, messages ─> text's PromptReader ─> ids ─> Writer: Generator ─> TextStream ─> text as it becomes certain
                                                   └── ends, stop strings
```
*/

mod decoding;
mod ends;
mod writer;

pub use decoding::Decoding;
pub use ends::end_ids;
pub use writer::{Asked, Finish, Heard, Writer, Written};
