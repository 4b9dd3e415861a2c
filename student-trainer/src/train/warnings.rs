//! Provides what is said once a run, not once a step.

use serde::{Deserialize, Serialize};

use super::step::StepLoss;

/// Remembers what was said.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Warnings {
    skipped: bool,
    uninformative: bool,
    not_converged: bool,
}

impl Warnings {
    /// `left_out` frames of the batch may be missing without a word: somebody else has said why.
    pub fn look_at_examples(&mut self, examples: usize, batch: usize, left_out: usize) {
        let skipped = batch.saturating_sub(examples + left_out);
        if skipped > 0 && !std::mem::replace(&mut self.skipped, true) {
            tracing::warn!(
                "{skipped} of {batch} frames hold nothing for this student (no target of its own within its positions, or no \
                 token that it knows); they are skipped, and so are others like them"
            );
        }
    }

    pub fn look_at(&mut self, loss: &StepLoss) {
        let Some((solver, uninformative)) = loss.solver else {
            return;
        };
        if uninformative && !std::mem::replace(&mut self.uninformative, true) {
            tracing::warn!(
                "transport is within 1 % of 1 - 1/M, the value of a plan that knows nothing: it does not teach; lower \
                 --epsilon or --temperature, or use another --similarity"
            );
        }
        if !solver.converged && !std::mem::replace(&mut self.not_converged, true) {
            tracing::warn!(
                "transport did not converge in {} iterations (marginal error {:.1e}); raise --max-iterations or \
                 --epsilon",
                solver.iterations,
                solver.marginal_error
            );
        }
    }
}
