/*! The losses: cross-entropy, Kullback-Leibler and optimal transport on one sequence, and their exact gradient.

```text
 LossConfig ── validate ──> check_teacher (handshake) ──> check_rows (every sequence)
 teacher Rows ──> teacher (kept distribution) ──┐
 student head ──> geometry (E; P, G) ───────────┼──> similarity / cost ──> sinkhorn ──> objective ──> transport
 hidden states H ───────────────────────────────┴──> head: chunks of Z = H W^T ──> rows (CE, KL, softmax part) ──> dL/dH
 reference: all of it dense, in f64, slow and obvious; dense: the same costs from dense logits
```

Every gradient is the exact one of the value it comes with, except under the objective `detached`, which exists only in
the preset `literal`.
*/

pub mod config;
mod error;
mod teacher;
mod geometry;
mod similarity;
mod sparse;
mod cost;
mod simd;
pub mod sinkhorn;
mod objective;
mod transport;
mod rowwise;
mod rows;
mod head;
pub mod reference;
#[cfg(test)]
mod testing;

pub use config::{Cost, LossConfig, Objective, OtConfig, Reduction, Scope, Similarity};
pub use error::{LossError, Result};
pub use geometry::HeadGeometry;
pub use head::{HeadLoss, LossValues, head_loss, head_values};
pub use transport::SolverReport;
