//! Provides backpropagation through the decoder in pieces, so that what only one piece keeps exists at a time (layer checkpointing;
//! Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).

use std::ops::Range;

use candle_core::{DType, Tensor};

use crate::decoder::spans_of;
use crate::gradients::Gradients;
use crate::layer::{Activations, Pass};
use crate::ops::{Ops, Span, with_ops};
use crate::rope::Angles;
use crate::{Decoder, Error, Result};

/// What a forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpointing {
    /// What products made in every layer: fastest, and most memory.
    Off,
    /// The input of every n-th layer; the n layers from there are computed again when needed.
    Every(usize),
}

/// A forward pass that can be differentiated once.
#[derive(Debug)]
pub struct Tape<'a> {
    record: Box<dyn Recorded + 'a>,
    hidden: Tensor,
}

/// What a pass recorded, whatever computes it.
trait Recorded: std::fmt::Debug {
    /// See [`Tape::layer_output`].
    fn layer_output(&self, layer: usize) -> Result<Option<Tensor>>;

    /// See [`Tape::backward_with`].
    fn backward(
        self: Box<Self>,
        grad: &Tensor,
        at_layers: &[(usize, Tensor)],
        gradients: &mut Gradients,
    ) -> Result<()>;
}

#[derive(Debug)]
struct Record<'a, O: Ops> {
    decoder: &'a Decoder,
    ops: O,
    angles: Angles,
    spans: Vec<Span>,
    ids: Tensor,
    /// [B, T, d].
    dims: [usize; 3],
    segments: Vec<Segment<O>>,
    /// Input of the final norm.
    last: O::Array,
}

/// Some consecutive layers, with what is needed to differentiate them.
#[derive(Debug)]
struct Segment<O: Ops> {
    layers: Range<usize>,
    input: O::Array,
    /// Of its one layer; `None` where they are computed again.
    kept: Option<Activations<O>>,
}

impl<'a> Tape<'a> {
    pub(crate) fn record(
        decoder: &'a Decoder,
        ids: &Tensor,
        angles: Angles,
        checkpointing: Checkpointing,
    ) -> Result<Self> {
        with_ops!(decoder, ops => {
            let (record, hidden) = Record::new(decoder, ops, ids, angles, checkpointing)?;
            let record = Box::new(record);
            Ok(Self { record, hidden })
        })
    }

    /// Hidden states after the final norm.
    ///
    /// # Shapes
    /// [B, T, d]
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// The residual stream after the first `layer` layers, 0 for what the embeddings give, where the tape keeps it: between two of its pieces, so at
    /// every layer but the last unless several are checkpointed together.
    ///
    /// # Shapes
    /// [B, T, d], f32
    ///
    /// # Errors
    /// When there is no room for a copy.
    pub fn layer_output(&self, layer: usize) -> Result<Option<Tensor>> {
        self.record.layer_output(layer)
    }

    /// Adds to `gradients` what every trained parameter below the head gets from the loss.
    ///
    /// # Shapes
    /// grad_hidden [B, T, d]: the loss's gradient in [`hidden`](Self::hidden).
    ///
    /// # Errors
    /// When `grad_hidden` has another shape.
    pub fn backward(self, grad_hidden: &Tensor, gradients: &mut Gradients) -> Result<()> {
        self.backward_with(grad_hidden, &[], gradients)
    }

    /// As [`backward`](Self::backward), for a loss that also sees the residual stream after some layers.
    ///
    /// # Shapes
    /// at_layers: numbers of layers, each with the loss's gradient in their [`layer_output`](Self::layer_output), [B, T, d].
    ///
    /// # Errors
    /// When a gradient has another shape, or the tape does not keep a layer's output.
    pub fn backward_with(
        self,
        grad_hidden: &Tensor,
        at_layers: &[(usize, Tensor)],
        gradients: &mut Gradients,
    ) -> Result<()> {
        if grad_hidden.dims() != self.hidden.dims() {
            let what = "the gradient of the hidden states";
            return Err(Error::shape(what, self.hidden.dims(), grad_hidden.dims()));
        }
        for (layer, grad) in at_layers {
            let kept = self.layer_output(*layer)?;
            let kept = kept.as_ref().map(Tensor::dims).unwrap_or(&[]);
            if grad.dims() != kept {
                return Err(Error::shape(
                    "the gradient of a layer's output",
                    kept,
                    grad.dims(),
                ));
            }
        }
        self.record.backward(grad_hidden, at_layers, gradients)
    }
}

impl<'a, O: Ops> Record<'a, O> {
    /// The record, and the hidden states.
    fn new(
        decoder: &'a Decoder,
        mut ops: O,
        ids: &Tensor,
        angles: Angles,
        checkpointing: Checkpointing,
    ) -> Result<(Self, Tensor)> {
        let every = match checkpointing {
            Checkpointing::Off => 1,
            Checkpointing::Every(0) => {
                return Err(Error::InvalidOption {
                    option: "checkpointing",
                    message: "0 layers a piece; use at least 1".into(),
                });
            }
            Checkpointing::Every(every) => every,
        };
        let (mut x, dims) = decoder.embed_for(&mut ops, ids)?;
        let count = decoder.layers().len();
        let spans = spans_of(&angles, ids)?;
        let mut pass = Pass {
            ops,
            angles: &angles,
            spans: &spans,
        };
        let mut segments = Vec::with_capacity(count.div_ceil(every));
        for start in (0..count).step_by(every) {
            let layers = start..count.min(start.saturating_add(every));
            let (output, kept) = match checkpointing {
                Checkpointing::Off => {
                    let layer = &decoder.layers()[start];
                    let (output, kept) = layer.forward_and_keep(&mut pass, &x)?;
                    (output, Some(kept))
                }
                Checkpointing::Every(_) => (run(decoder, &mut pass, &layers, &x)?, None),
            };
            segments.push(Segment {
                layers,
                input: std::mem::replace(&mut x, output),
                kept,
            });
        }
        let mut ops = pass.ops;
        let hidden = decoder.finish(&mut ops, &x, &dims)?;
        let record = Self {
            decoder,
            ops,
            angles,
            spans,
            ids: ids.clone(),
            dims,
            segments,
            last: x,
        };
        Ok((record, hidden))
    }
}

/// The output of some layers; nothing is kept.
fn run<O: Ops>(
    decoder: &Decoder,
    pass: &mut Pass<'_, O>,
    layers: &Range<usize>,
    input: &O::Array,
) -> Result<O::Array> {
    let mut x: Option<O::Array> = None;
    for layer in &decoder.layers()[layers.clone()] {
        let out = layer.forward(pass, x.as_ref().unwrap_or(input), None)?;
        pass.ops.recycle(x.replace(out));
    }
    match x {
        Some(x) => Ok(x),
        None => pass.ops.copy(input),
    }
}

impl<O: Ops> Segment<O> {
    /// Given dL/d output, adds the gradients of what is trained in the segment and returns dL/d input, where something below
    /// is trained.
    fn pull_back(
        self,
        decoder: &Decoder,
        pass: &mut Pass<'_, O>,
        grad: O::Array,
        gradients: &mut Gradients,
    ) -> Result<Option<O::Array>> {
        let Self {
            layers,
            input,
            kept,
        } = self;
        let mut passed = Vec::with_capacity(layers.len());
        match kept {
            Some(kept) => passed.push((layers.start, input, kept)),
            // Nobody asks for the last one's output.
            None => {
                let mut x = input;
                for index in layers.start..layers.end.saturating_sub(1) {
                    let (output, kept) = decoder.layers()[index].forward_and_keep(pass, &x)?;
                    passed.push((index, std::mem::replace(&mut x, output), kept));
                }
                if let Some(index) = layers.last() {
                    let kept = decoder.layers()[index].activations(pass, &x, None)?;
                    passed.push((index, x, kept));
                }
            }
        }
        let mut grad = grad;
        for (index, input, kept) in passed.into_iter().rev() {
            let layer = &decoder.layers()[index];
            let below = trained_below(decoder, index);
            match layer.backward(pass, &input, kept, grad, below, gradients)? {
                Some(to_input) => grad = to_input,
                None => return Ok(None),
            }
            pass.ops.recycle([input]);
        }
        Ok(Some(grad))
    }
}

impl<O: Ops> Recorded for Record<'_, O> {
    fn layer_output(&self, layer: usize) -> Result<Option<Tensor>> {
        let above = |segment: &&Segment<O>| segment.layers.start == layer;
        let segment = self.segments.iter().find(above);
        let tensor = |segment: &Segment<O>| self.ops.tensor(&segment.input, &self.dims);
        segment.map(tensor).transpose()
    }

    fn backward(
        self: Box<Self>,
        grad: &Tensor,
        at_layers: &[(usize, Tensor)],
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Self {
            decoder,
            mut ops,
            angles,
            spans,
            ids,
            dims,
            segments,
            last,
        } = *self;
        let stream = |grad: &Tensor| Ok::<_, Error>(grad.detach().to_dtype(DType::F32)?);
        let grad = ops.array(&stream(grad)?)?;
        let below = ops.rms_norm_gradient(decoder.norm(), &last, &grad, None, gradients)?;
        ops.recycle([grad, last]);
        let mut grad = below;
        let mut pass = Pass {
            ops,
            angles: &angles,
            spans: &spans,
        };
        for segment in segments.into_iter().rev() {
            let first = segment.layers.start;
            match segment.pull_back(decoder, &mut pass, grad, gradients)? {
                Some(below) => grad = below,
                // Nothing below is trained.
                None => return Ok(()),
            }
            for (_, own) in at_layers.iter().filter(|(layer, _)| *layer == first) {
                let sum = (pass.ops.tensor(&grad, &dims)? + stream(own)?)?;
                grad = pass.ops.array(&sum)?;
            }
        }
        let grad = pass.ops.tensor(&grad, &dims)?;
        embedding_gradient(decoder, &ids, &grad, gradients)
    }
}

fn trained_below(decoder: &Decoder, first: usize) -> bool {
    decoder.trained_embedding().is_some()
        || decoder.layers()[..first]
            .iter()
            .any(|layer| !layer.parameters().is_empty())
}

/// Adds each position's gradient to the row of its id, where the embedding is trained.
fn embedding_gradient(
    decoder: &Decoder,
    ids: &Tensor,
    grad: &Tensor,
    gradients: &mut Gradients,
) -> Result<()> {
    let Some((name, embedding)) = decoder.trained_embedding() else {
        return Ok(());
    };
    let rows = grad.flatten_to(1)?.to_dtype(embedding.dtype())?;
    let sum = embedding.zeros_like()?.index_add(
        &ids.flatten_all()?.to_device(rows.device())?,
        &rows,
        0,
    )?;
    gradients.add(name, &sum)
}

/// Hidden states and gradients of a pass with these operations: of ids in documents of some lengths, what is kept, dL/dhidden.
#[cfg(test)]
pub(crate) fn gradients_on<O: Ops>(
    decoder: &Decoder,
    ops: O,
    (ids, lengths, checkpointing, grad): (&Tensor, Option<&[usize]>, Checkpointing, &Tensor),
) -> Result<(Tensor, Gradients)> {
    let angles = match lengths {
        None => decoder.angles(ids, 0)?,
        Some(lengths) => decoder.packed_angles(ids, lengths)?,
    };
    let (record, hidden) = Record::new(decoder, ops, ids, angles, checkpointing)?;
    let mut gradients = Gradients::new();
    Box::new(record).backward(grad, &[], &mut gradients)?;
    Ok((hidden, gradients))
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
