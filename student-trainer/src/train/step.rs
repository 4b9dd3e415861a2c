//! Provides one forward and backward pass: sequences in, loss and gradients out.

use candle_core::Tensor;
use distill_model::{Checkpointing, Decoder, Gradients};

use super::example::Example;
use crate::{
    Result,
    loss::{HeadGeometry, HeadLoss, LossConfig, head_loss},
    student::padded_ids,
};

/// What stays the same over all steps.
pub struct Objective<'a> {
    /// The student.
    pub decoder: &'a Decoder,
    /// What the loss knows of the head.
    pub geometry: &'a HeadGeometry,
    /// Settings of the loss.
    pub loss: &'a LossConfig,
    /// What the forward pass keeps.
    pub checkpointing: Checkpointing,
}

/// The loss of one step, over all its sequences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepLoss {
    /// The weighted total.
    pub total: f64,
    /// Cross-entropy.
    pub ce: f64,
    /// KL.
    pub kl: f64,
    /// Optimal transport.
    pub ot: f64,
    /// Tokens through the model, without padding.
    pub tokens: usize,
    /// Targets among them.
    pub targets: usize,
    /// What the solver did, the worst over all sequences.
    pub solver: Option<SolverSummary>,
}

/// The worst of a step's transport problems.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SolverSummary {
    /// Most iterations.
    pub iterations: usize,
    /// Largest marginal error.
    pub marginal_error: f64,
    /// Whether all converged.
    pub converged: bool,
    /// Whether any is at the value of a plan that knows nothing.
    pub uninformative: bool,
}

impl Objective<'_> {
    /// Runs all sequences of a step, `batch_size` at a time, and adds up their gradients.
    ///
    /// Each sequence counts by its share of the step's targets, so that CE and KL are means over all targets of the
    /// step, however it is cut into passes.
    ///
    /// # Errors
    /// A tensor error, or a loss that is not finite.
    pub fn forward_backward(
        &self,
        examples: &[&Example],
        batch_size: usize,
        gradients: &mut Gradients,
    ) -> Result<StepLoss> {
        let mut sum = StepLoss {
            tokens: examples.iter().map(|one| one.token_ids.len()).sum(),
            targets: examples.iter().map(|one| one.target_positions.len()).sum(),
            ..StepLoss::default()
        };
        for batch in examples.chunks(batch_size.max(1)) {
            self.pass(batch, &mut sum, gradients)?;
        }
        Ok(sum)
    }

    /// One forward and backward pass over sequences padded to the longest.
    fn pass(
        &self,
        batch: &[&Example],
        sum: &mut StepLoss,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let sequences = batch.iter().map(|one| one.token_ids.as_slice());
        let ids = padded_ids(sequences, self.decoder.device())?;
        let (sequences, length) = ids.dims2()?;
        let tape = self.decoder.tape(&ids, self.checkpointing)?;
        let hidden = tape.hidden().flatten_to(1)?;
        let mut grad_hidden = hidden.zeros_like()?;
        for (row, example) in batch.iter().enumerate() {
            let positions = &example.target_positions;
            let weight = positions.len() as f64 / sum.targets.max(1) as f64;
            // The output at t - 1 speaks of the token at t; no target is at 0.
            let outputs: Vec<u32> = positions
                .iter()
                .map(|t| (row * length + t - 1) as u32)
                .collect();
            let outputs = Tensor::from_vec(outputs, positions.len(), hidden.device())?;
            let labels = example.labels();
            let rows = hidden.index_select(&outputs, 0)?;
            let loss = head_loss(&rows, &labels, &example.targets, self.geometry, self.loss)?;
            sum.add(&loss, weight, self.loss.ot_weight > 0.0);
            let grad = (loss.grad_hidden * weight)?.to_dtype(hidden.dtype())?;
            grad_hidden = grad_hidden.index_add(&outputs, &grad, 0)?;
        }
        let grad_hidden = grad_hidden.reshape((sequences, length, ()))?;
        tape.backward(&grad_hidden, gradients)?;
        Ok(())
    }
}

impl StepLoss {
    fn add(&mut self, loss: &HeadLoss, weight: f64, transported: bool) {
        self.total += weight * loss.total;
        self.ce += weight * loss.ce;
        self.kl += weight * loss.kl;
        self.ot += weight * loss.ot;
        if !transported {
            return;
        }
        let report = &loss.report;
        let worst = self.solver.get_or_insert(SolverSummary {
            iterations: 0,
            marginal_error: 0.0,
            converged: true,
            uninformative: false,
        });
        worst.iterations = worst.iterations.max(report.iterations);
        worst.marginal_error = worst.marginal_error.max(report.marginal_error);
        worst.converged &= report.converged;
        worst.uninformative |= report.uninformative;
    }

    /// Names the first part that is not finite.
    pub fn not_finite(&self) -> Option<&'static str> {
        let parts = [
            ("the loss's cross-entropy", self.ce),
            ("the loss's KL", self.kl),
            ("the loss's transport", self.ot),
            ("the loss", self.total),
        ];
        parts
            .iter()
            .find(|(_, value)| !value.is_finite())
            .map(|(name, _)| *name)
    }
}
