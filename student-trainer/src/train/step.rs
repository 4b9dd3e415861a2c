//! Provides one forward and backward pass: sequences in, loss and gradients out.

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};
use distill_model::{Checkpointing, Decoder, Gradients, Tape};

use super::{example::Example, passes::Passes};
use crate::{
    Error, Result,
    loss::{
        Convergence, HeadGeometry, HeadLoss, HiddenProjection, LayerStates, LossConfig, LossValues,
        SolverReport, StatesGradient, Student, head_loss, head_loss_with_head,
    },
    run::{Memory, StepMetrics},
    student::padded_ids,
};

/// What stays the same over all steps.
pub struct Objective<'a> {
    /// The student.
    pub decoder: &'a Decoder,
    /// What the loss knows of the head, as it was at the start.
    pub geometry: &'a HeadGeometry,
    /// Whether the head moves with every step.
    pub trains_head: bool,
    /// The ways from the teacher's hidden states to the student's, one for each pair of layers; none where the loss uses none.
    pub projections: &'a [HiddenProjection],
    /// What the forward pass keeps.
    pub checkpointing: Checkpointing,
    /// How sequences share a pass.
    pub passes: Passes,
}

/// The loss of one step, over all its sequences, or over those of one rank.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepLoss {
    /// The weighted total.
    pub total: f64,
    /// Cross-entropy.
    pub ce: f64,
    /// KL.
    pub kl: f64,
    /// Reverse KL.
    pub reverse_kl: f64,
    /// JSD.
    pub jsd: f64,
    /// Optimal transport.
    pub ot: f64,
    /// Tokens through the model, without padding.
    pub tokens: usize,
    /// Positions of padding beside them.
    pub padding: usize,
    /// Targets among them.
    pub targets: usize,
    /// What the solver did, the worst over all sequences; whether any of them is at the value of a plan that knows nothing.
    pub solver: Option<(Convergence, bool)>,
}

impl Objective<'_> {
    /// Runs all sequences of a step, some of them in each pass, and adds up their gradients.
    ///
    /// Each sequence counts by its share of the step's targets, so that CE and KL are means over all targets of the
    /// step, however it is cut into passes.
    ///
    /// `scale` multiplies the loss on its way through the decoder and is taken out of the gradients again: in half precision
    /// small gradients vanish without it (see [`LossScaler`](super::loss_scale::LossScaler)); elsewhere it is 1.
    ///
    /// # Errors
    /// A tensor error, or a loss that is not finite.
    pub fn forward_backward(
        &self,
        examples: &[Example],
        loss: &LossConfig,
        scale: f64,
        gradients: &mut Gradients,
    ) -> Result<StepLoss> {
        let targets = StepLoss::none_of(examples).targets;
        self.forward_backward_of(targets, examples, loss, scale, gradients)
    }

    /// As [`forward_backward`](Self::forward_backward), with some sequences of a step of so many targets: what all ranks come to
    /// adds up to the step's.
    ///
    /// # Errors
    /// As there.
    pub fn forward_backward_of(
        &self,
        targets: usize,
        examples: &[Example],
        loss: &LossConfig,
        scale: f64,
        gradients: &mut Gradients,
    ) -> Result<StepLoss> {
        let mut scaled = Gradients::new();
        let mut step = Step {
            targets,
            sum: StepLoss::none_of(examples),
            scaled: &mut scaled,
            gradients,
        };
        for batch in self.passes.cut(examples) {
            self.pass(batch, loss, scale, &mut step)?;
        }
        let sum = step.sum;
        if scale != 1.0 {
            scaled.scale(scale.recip())?;
        }
        for (name, gradient) in scaled.iter() {
            gradients.add(name, gradient)?;
        }
        Ok(sum)
    }

    /// One forward and backward pass.
    fn pass(
        &self,
        batch: &[Example],
        config: &LossConfig,
        scale: f64,
        step: &mut Step<'_>,
    ) -> Result<()> {
        let Step {
            targets,
            sum,
            scaled,
            gradients,
        } = step;
        let (tape, starts) = self.tape(batch)?;
        let shape = tape.hidden().dims3()?;
        let hidden = tape.hidden().flatten_to(1)?;
        sum.padding += shape.0 * shape.1;
        sum.padding -= batch.iter().map(|one| one.token_ids.len()).sum::<usize>();
        // f32 until it is scaled: half precision loses what is small.
        let mut grad_hidden = hidden.to_dtype(DType::F32)?.zeros_like()?;
        let geometry = self.geometry()?;
        let mut compared = States::new(self.projections, config, &tape)?;
        for (example, start) in batch.iter().zip(starts) {
            let positions = &example.target_positions;
            let weight = positions.len() as f64 / (*targets).max(1) as f64;
            // The output at t - 1 speaks of the token at t; no target is at 0.
            let outputs: Vec<u32> = positions.iter().map(|t| (start + t - 1) as u32).collect();
            let outputs = Tensor::from_vec(outputs, positions.len(), hidden.device())?;
            let rows = hidden.index_select(&outputs, 0)?;
            let at_outputs = compared.at(&outputs)?;
            let states: Vec<LayerStates<'_>> = compared.pairs(&at_outputs).collect();
            let student = Student {
                hidden: &rows,
                states: &states,
            };
            let loss = self
                .head_loss(student, example, &geometry, weight, config, gradients)
                .map_err(|error| error.of_sequence(example.index))?;
            sum.add(&loss.values, weight);
            if config.ot_weight > 0.0 {
                sum.note(&loss.values.report);
            }
            compared.add(&loss.grad_states, &outputs, weight, gradients)?;
            grad_hidden = grad_hidden.index_add(&outputs, &(loss.grad_hidden * weight)?, 0)?;
        }
        let mut at_layers = Vec::new();
        for Layer {
            number, gradient, ..
        } in compared.layers
        {
            match number {
                Some(layer) => at_layers.push((layer, (gradient.reshape(shape)? * scale)?)),
                None => grad_hidden = (grad_hidden + gradient)?,
            }
        }
        let grad_hidden = (grad_hidden.reshape(shape)? * scale)?.to_dtype(hidden.dtype())?;
        Ok(tape.backward_with(&grad_hidden, &at_layers, scaled)?)
    }

    /// The forward pass over some sequences, packed or padded to the longest, and the row of the first token of each.
    fn tape(&self, batch: &[Example]) -> Result<(Tape<'_>, Vec<usize>)> {
        let sequences = batch.iter().map(|one| one.token_ids.as_slice());
        if matches!(self.passes, Passes::Padded { .. }) {
            let ids = padded_ids(sequences)?;
            let (count, length) = ids.dims2()?;
            let tape = self.decoder.tape(&ids, self.checkpointing)?;
            return Ok((tape, (0..count).map(|row| row * length).collect()));
        }
        let lengths: Vec<usize> = sequences.clone().map(<[u32]>::len).collect();
        let starts = lengths.iter().scan(0, |next, length| {
            let start = *next;
            *next += length;
            Some(start)
        });
        let starts = starts.collect();
        let ids: Vec<u32> = sequences.flatten().copied().collect();
        let count = ids.len();
        let ids = Tensor::from_vec(ids, (1, count), &Device::Cpu)?;
        let tape = self
            .decoder
            .packed_tape(&ids, &lengths, self.checkpointing)?;
        Ok((tape, starts))
    }
}

impl Objective<'_> {
    /// The effective rows of the head as they are now.
    pub(super) fn geometry(&self) -> Result<Cow<'_, HeadGeometry>> {
        if !self.trains_head {
            return Ok(Cow::Borrowed(self.geometry));
        }
        let head = self.decoder.head()?;
        let head = head.narrow(0, 0, self.geometry.vocab_size())?;
        Ok(Cow::Owned(HeadGeometry::new(&head, None)?))
    }

    /// The loss of one sequence; a head that is trained gets its gradient, times `weight`, here.
    fn head_loss(
        &self,
        student: Student<'_>,
        example: &Example,
        geometry: &HeadGeometry,
        weight: f64,
        config: &LossConfig,
        gradients: &mut Gradients,
    ) -> Result<HeadLoss> {
        let (labels, targets) = (example.labels(), &example.targets);
        if !self.trains_head {
            return Ok(head_loss(student, &labels, targets, geometry, config)?);
        }
        let (loss, head) = head_loss_with_head(student, &labels, Some(targets), geometry, config)?;
        let padding = self.decoder.config().vocab_size - geometry.vocab_size();
        let head = (head * weight)?.pad_with_zeros(0, 0, padding)?;
        gradients.add(self.decoder.head_name(), &head)?;
        Ok(loss)
    }
}

/// Hidden states that are compared with the teacher's, over the sequences of one pass.
struct States<'a> {
    projections: &'a [HiddenProjection],
    /// Each of the student's layers once, whatever the number of pairs that it is in.
    layers: Vec<Layer>,
}

/// One of the student's layers.
struct Layer {
    /// Layers below the states; `None` for the last, after its norm.
    number: Option<usize>,
    /// `[B T, d]`, f32.
    states: Tensor,
    /// Of the loss in `states`.
    gradient: Tensor,
}

impl<'a> States<'a> {
    fn new(
        projections: &'a [HiddenProjection],
        config: &LossConfig,
        tape: &Tape<'_>,
    ) -> Result<Self> {
        let projections = if config.needs_states() {
            projections
        } else {
            &[]
        };
        let mut layers: Vec<Layer> = Vec::new();
        for projection in projections {
            let number = projection.layer().student_layer;
            if layers.iter().any(|layer| layer.number == number) {
                continue;
            }
            let states = match number {
                None => Some(tape.hidden().clone()),
                Some(layer) => tape.layer_output(layer)?,
            };
            let states = states.ok_or_else(|| not_kept(projection))?;
            let states = states.flatten_to(1)?.to_dtype(DType::F32)?;
            layers.push(Layer {
                number,
                gradient: states.zeros_like()?,
                states,
            });
        }
        Ok(Self {
            projections,
            layers,
        })
    }

    /// The states of every layer at some outputs.
    fn at(&self, outputs: &Tensor) -> Result<Vec<Tensor>> {
        let layers = self.layers.iter();
        layers
            .map(|layer| Ok(layer.states.index_select(outputs, 0)?))
            .collect()
    }

    /// Those of every pair of layers.
    fn pairs<'s>(&'s self, at_outputs: &'s [Tensor]) -> impl Iterator<Item = LayerStates<'s>> {
        self.projections.iter().filter_map(|projection| {
            let states = at_outputs.get(self.layer_of(projection)?)?;
            Some(LayerStates { states, projection })
        })
    }

    fn layer_of(&self, projection: &HiddenProjection) -> Option<usize> {
        let number = projection.layer().student_layer;
        self.layers.iter().position(|layer| layer.number == number)
    }

    /// Takes the gradients of one sequence, whose states are `outputs`.
    fn add(
        &mut self,
        pairs: &[StatesGradient],
        outputs: &Tensor,
        weight: f64,
        gradients: &mut Gradients,
    ) -> Result<()> {
        for (projection, found) in self.projections.iter().zip(pairs) {
            let states = (&found.states * weight)?;
            if let Some(at) = self.layer_of(projection) {
                let gradient = &mut self.layers[at].gradient;
                *gradient = gradient.index_add(outputs, &states, 0)?;
            }
            gradients.add(&projection.name(), &(&found.projection * weight)?)?;
        }
        Ok(())
    }
}

/// A run checks this before its first step; the step itself may be called by others.
fn not_kept(projection: &HiddenProjection) -> Error {
    Error::Config(format!(
        "layers: {}: the output of this layer of the student is not kept; with --checkpoint-every N take a multiple of N, or last",
        projection.layer()
    ))
}

/// What the passes of a step add to.
struct Step<'a> {
    /// Of the whole step.
    targets: usize,
    sum: StepLoss,
    /// What comes out of the decoder, times the scale.
    scaled: &'a mut Gradients,
    /// The rest.
    gradients: &'a mut Gradients,
}

impl StepLoss {
    /// Of a step over these sequences before any of them is computed.
    pub(super) fn none_of(examples: &[Example]) -> Self {
        Self {
            tokens: examples.iter().map(|one| one.token_ids.len()).sum(),
            targets: examples.iter().map(|one| one.target_positions.len()).sum(),
            ..Self::default()
        }
    }

    fn add(&mut self, values: &LossValues, weight: f64) {
        for (sum, value) in [
            (&mut self.total, values.total),
            (&mut self.ce, values.ce),
            (&mut self.kl, values.kl),
            (&mut self.reverse_kl, values.reverse_kl),
            (&mut self.jsd, values.jsd),
            (&mut self.ot, values.ot),
        ] {
            *sum += weight * value;
        }
    }

    fn note(&mut self, report: &SolverReport) {
        let (worst, uninformative) = self.solver.get_or_insert_default();
        worst.add(report.convergence);
        *uninformative |= report.uninformative;
    }

    /// What a line of metrics says of it, after so many seconds.
    pub(super) fn metrics(&self, seconds: f64) -> StepMetrics {
        let memory = Memory::now();
        let solver = self.solver.map(|(solver, _)| solver);
        StepMetrics {
            loss: self.total,
            ce: self.ce,
            kl: self.kl,
            reverse_kl: self.reverse_kl,
            jsd: self.jsd,
            ot: self.ot,
            tokens: self.tokens,
            padding: self.padding,
            targets: self.targets,
            tokens_per_second: self.tokens as f64 / seconds.max(1e-9),
            ot_iterations: solver.map(|solver| solver.iterations),
            ot_marginal_error: solver.map(|solver| solver.marginal_error),
            ot_converged: solver.map(|solver| solver.converged),
            rss_bytes: memory.rss_bytes,
            peak_rss_bytes: memory.peak_rss_bytes,
            ..StepMetrics::default()
        }
    }

    /// Names the first part that is not finite.
    pub fn not_finite(&self) -> Option<&'static str> {
        let parts = [
            ("the loss's cross-entropy", self.ce),
            ("the loss's KL", self.kl),
            ("the loss's reverse KL", self.reverse_kl),
            ("the loss's JSD", self.jsd),
            ("the loss's transport", self.ot),
            ("the loss", self.total),
        ];
        parts
            .iter()
            .find(|(_, value)| !value.is_finite())
            .map(|(name, _)| *name)
    }
}
