/*! Provides the pass over the head, a chunk of rows at a time: values of all rows, and the gradients that are asked for.

On the CPU every row is worked on in place; on a card nothing is waited for, and the host reads the values when all is under way.
*/

use std::borrow::Cow;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::bhattacharyya::Bhattacharyya;
use super::card_rows::{CardRows, row_values};
use super::config::LossConfig;
use super::error::Result;
use super::geometry::HeadGeometry;
use super::head::Counts;
use super::head_transport::HeadTransport;
use super::hidden::StatesGradient;
use super::rows::{RowTerms, RowValues, row_pass};
use super::rowwise::{each_row, magnitudes};
use super::teacher::Teacher;

/// What a pass is to yield beside the values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Values,
    Hidden,
    HiddenAndHead,
}

/// Gradients of one sequence; one zero where not wanted.
pub(super) struct Gradients {
    pub(super) hidden: Tensor,
    pub(super) head: Tensor,
    /// Of the states that are compared with the teacher's, and of the projections to them.
    pub(super) states: Vec<StatesGradient>,
}

impl Gradients {
    fn of_logits(hidden: Tensor, head: Tensor) -> Self {
        Self {
            hidden,
            head,
            states: Vec::new(),
        }
    }
}

/// Values of all rows, where they were made.
#[derive(Default)]
pub(super) struct PassValues {
    on_host: Vec<RowValues>,
    /// `[5 c]` of every chunk.
    on_card: Vec<Tensor>,
}

impl PassValues {
    /// The values and, of each gradient, the [sum of its magnitudes](magnitudes). On a card this is the one wait of a pass.
    pub(super) fn read(self, gradients: &[&Tensor]) -> Result<(Vec<RowValues>, Vec<f64>)> {
        let all = [self.on_card, magnitudes(gradients)?].concat();
        let numbers = Tensor::cat(&all, 0)?.to_vec1()?;
        let (on_card, sizes) = numbers.split_at(numbers.len() - gradients.len());
        let values = [self.on_host, row_values(on_card)].concat();
        Ok((values, sizes.to_vec()))
    }
}

/// The pass over the head that yields values and, if asked for, the gradient.
pub(super) struct HeadPass<'a> {
    pub(super) labels: &'a [u32],
    pub(super) teacher: Option<&'a Teacher<'a>>,
    /// Of the N rows, those that the losses are means over.
    pub(super) counts: Counts,
    pub(super) ot: Option<&'a HeadTransport<'a>>,
    pub(super) config: &'a LossConfig,
    pub(super) wanted: Wanted,
}

impl HeadPass<'_> {
    /// Whether anything that is asked for depends on logits: a similarity of `state` alone does not.
    pub(super) fn needs_logits(&self) -> bool {
        let config = self.config;
        let through_logits = |ot: &HeadTransport| ot.row_weights.is_some() || ot.roots.is_some();
        let through_logits = self
            .ot
            .is_some_and(|ot| through_logits(ot) || ot.row_constant.is_some());
        self.wanted == Wanted::Values
            || config.ce_weight > 0.0
            || self.teacher.is_none()
            || config.divergence_weight() > 0.0
            || through_logits
    }

    pub(super) fn without_logits(
        &self,
        hidden: &Tensor,
        geometry: &HeadGeometry,
    ) -> Result<(PassValues, Gradients)> {
        let values = PassValues {
            on_host: vec![RowValues::default(); self.labels.len()],
            ..PassValues::default()
        };
        let (dtype, device) = (DType::F32, hidden.device());
        let head = if self.wanted == Wanted::HiddenAndHead {
            let size = (geometry.vocab_size(), geometry.hidden_size());
            Tensor::zeros(size, dtype, device)?
        } else {
            Tensor::zeros(1, dtype, device)?
        };
        let hidden = hidden.zeros_like()?;
        Ok((values, Gradients::of_logits(hidden, head)))
    }

    pub(super) fn run(
        &self,
        hidden: &Tensor,
        geometry: &HeadGeometry,
    ) -> Result<(PassValues, Gradients)> {
        let n = hidden.dims()[0];
        let zero = Tensor::zeros(1, DType::F32, hidden.device())?;
        let on_card = geometry.card().map(|compute| {
            let terms: Vec<RowTerms> = (0..n).into_par_iter().map(|i| self.terms(i)).collect();
            CardRows::new(&terms, geometry.vocab_size(), hidden.device(), compute)
        });
        let on_card = on_card.transpose()?;
        let mut values = PassValues::default();
        let mut grad_hidden = Vec::new();
        let mut grad_head: Option<Tensor> = None;
        for (start, count) in chunks(n, self.config.chunk_rows) {
            let h = hidden.narrow(0, start, count)?;
            let z = geometry.wide_logits(&h)?;
            let d = match &on_card {
                None => {
                    let (d, chunk) = self.chunk_on_host(start, z)?;
                    values.on_host.extend(chunk);
                    d
                }
                Some(rows) => {
                    let (d, chunk) = self.chunk_on_card(start, z, rows, geometry)?;
                    values.on_card.push(chunk);
                    d
                }
            };
            let Some(d) = d else { continue };
            grad_hidden.push(geometry.backward(&d)?);
            if self.wanted == Wanted::HiddenAndHead {
                let part = d.t()?.matmul(&h)?;
                grad_head = Some(match grad_head {
                    Some(sum) => (sum + part)?,
                    None => part,
                });
            }
        }
        let hidden = match self.wanted {
            Wanted::Values => zero.clone(),
            _ => Tensor::cat(&grad_hidden, 0)?,
        };
        let head = grad_head.unwrap_or(zero);
        Ok((values, Gradients::of_logits(hidden, head)))
    }

    /// Values of the rows from `start` on and, where a gradient is wanted, dL/dZ.
    fn chunk_on_host(&self, start: usize, z: Tensor) -> Result<(Option<Tensor>, Vec<RowValues>)> {
        let wanted = self.gradient_wanted();
        let count = z.dims()[0];
        let through_roots = self.through_roots(start, count)?;
        let row = |i: usize, z: &mut [f32]| {
            let through_roots = through_roots.as_ref().map(|(roots, gradient)| {
                let m = gradient.len() / count;
                let gradient = &gradient[i * m..(i + 1) * m];
                roots.backward(start + i, z, gradient, self.config.ot_weight)
            });
            let values = row_pass(z, &self.terms(start + i), wanted);
            for (z, extra) in z.iter_mut().zip(through_roots.into_iter().flatten()) {
                *z += extra;
            }
            values
        };
        let (d, values) = each_row(z, row)?;
        Ok((wanted.then_some(d), values))
    }

    /// The same where Z is on a card.
    fn chunk_on_card(
        &self,
        start: usize,
        z: Tensor,
        rows: &CardRows,
        geometry: &HeadGeometry,
    ) -> Result<(Option<Tensor>, Tensor)> {
        let (count, vocab) = (z.dims()[0], geometry.vocab_size());
        let through_roots = match self.through_roots(start, count)? {
            Some((roots, gradient)) => {
                let z = z.narrow(1, 0, vocab)?.contiguous()?;
                Some(roots.backward_on_device(start, &z, &gradient, self.config.ot_weight)?)
            }
            None => None,
        };
        let dtype = self.gradient_wanted().then(|| geometry.gradient_dtype());
        let (values, d) = rows.chunk(start, &z, dtype)?;
        let d = match (d, through_roots) {
            (Some(d), Some(through)) => {
                let d = d.narrow(1, 0, vocab)?.to_dtype(DType::F32)?;
                Some((d + through)?)
            }
            (d, _) => d,
        };
        Ok((d, values))
    }

    /// Where a part of the gradient passes through the logits by square roots: what it takes, with dL/dS of these rows.
    fn through_roots(&self, start: usize, count: usize) -> Result<Option<ThroughRoots<'_>>> {
        let ot = self.ot.filter(|_| self.gradient_wanted());
        let Some((roots, gradient)) = ot.and_then(|ot| ot.roots.as_ref()) else {
            return Ok(None);
        };
        let m = self.teacher.map_or(0, Teacher::rows);
        Ok(Some((roots, gradient.rows(start, count, m)?)))
    }

    fn gradient_wanted(&self) -> bool {
        self.wanted != Wanted::Values
    }

    /// What row i contributes to the loss.
    fn terms(&self, i: usize) -> RowTerms<'_> {
        let (config, teacher) = (self.config, self.teacher);
        let beside = teacher
            .filter(|_| config.divergence_weight() > 0.0)
            .and_then(|teacher| teacher.row(teacher.targets.pair(i)?, config.kl_temperature));
        let row_weights = self.ot.and_then(|ot| ot.row_weights.as_ref());
        RowTerms {
            label: self.labels[i],
            ce: if teacher.is_none_or(|teacher| teacher.targets.is_labelled(i)) {
                config.ce_weight / self.counts.labelled.max(1) as f64
            } else {
                0.0
            },
            teacher: beside,
            divergences: config.divergences().over(self.counts.pairs),
            softmax: row_weights.map_or(0.0, |weights| weights[i]),
        }
    }
}

/// What passes a gradient through square roots, and dL/dS of some rows, `[rows, M]`.
type ThroughRoots<'a> = (&'a Bhattacharyya<'a>, Cow<'a, [f32]>);

/// `(start, length)` of the chunks of `rows` rows.
pub(super) fn chunks(rows: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows)
        .step_by(step)
        .map(move |start| (start, step.min(rows - start)))
}
