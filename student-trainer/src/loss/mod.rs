/*! The losses: cross-entropy, Kullback-Leibler and optimal transport on one sequence, and their exact gradient.

```text
 LossConfig ── validate ──> check_teacher (handshake) ──> check_rows (every sequence)
 teacher Rows ──> teacher (kept distribution) ──┐
 student head ──> geometry (E; P, G) ───────────┼──> similarity / cost ──> sinkhorn ──> objective ──> transport
 hidden states H ───────────────────────────────┴──> head: chunks of Z = H W^T ──> rows (CE, KL, softmax part) ──> dL/dH
                                                      (on a card Z stays there: card_rows; and so do S, C and T: transport_card)
 reference: all of it dense, in f64, slow and obvious; dense: the same costs from dense logits
```

Every gradient is the exact one of the value it comes with, except under the objective `detached`, which exists only in
the preset `literal`.
*/

mod align_choices;
mod align_config;
#[cfg(test)]
mod align_tests;
mod bhattacharyya;
mod card_rows;
#[cfg(test)]
mod card_rows_tests;
pub mod config;
#[cfg(test)]
mod config_tests;
mod cost;
mod dense;
#[cfg(test)]
mod device_tests;
mod divergence;
mod error;
#[cfg(test)]
mod estimator_tests;
mod euclidean;
#[cfg(test)]
mod fixture_tests;
mod geometry;
mod head;
mod head_pass;
mod head_transport;
mod hidden;
#[cfg(test)]
mod labelled_tests;
mod layers;
mod objective;
mod plan;
mod projection;
#[cfg(test)]
mod reference;
mod rows;
mod rowwise;
mod schedule;
pub(crate) mod simd;
mod similarity;
pub mod sinkhorn;
mod sparse;
mod targets;
mod teacher;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod transport;
mod transport_card;
#[cfg(test)]
mod transport_card_tests;
#[cfg(test)]
mod transport_kernel_tests;

pub(crate) use config::is_positive;
pub use config::{
    AlignConfig, AlignLoss, Centering, Cost, LossConfig, LossSchedule, Marginals, POSITIONS_MAX,
    Projection, Reduction, Similarity,
};
pub use dense::{DenseLoss, dense_loss};
pub use error::{LossError, Result};
pub use geometry::HeadGeometry;
pub use head::{
    HeadLoss, LayerStates, LossValues, Student, head_loss, head_loss_with_head, head_values,
};
pub use head_transport::transport_plan;
pub use hidden::{HiddenProjection, StatesGradient};
pub use layers::StateLayer;
pub use plan::PlanKind;
pub(crate) use projection::{FittedProjection, ProjectionFit};
pub use sinkhorn::Convergence;
pub(crate) use sparse::TILE_ENTRIES;
pub use targets::{Alignment, Targets};
pub use transport::SolverReport;
pub(crate) use transport_card::CARD_ENTRIES_MAX;
