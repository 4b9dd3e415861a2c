//! Provides what is said once a run, not once a step.

use serde::{Deserialize, Serialize};

use super::{example::Example, step::StepLoss};
use crate::client::Received;

/// Remembers what was said.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Warnings {
    skipped: bool,
    uninformative: bool,
    not_converged: bool,
}

impl Warnings {
    pub fn look_at_examples(&mut self, examples: &[Example], batch: &[Received]) {
        let skipped = batch.len() - examples.len();
        if skipped > 0 && !std::mem::replace(&mut self.skipped, true) {
            tracing::warn!(
                "{skipped} of {} frames hold nothing for this student (no target of its own within its positions, or no \
                 token that it knows); they are skipped, and so are others like them",
                batch.len()
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
