//! Provides backpropagation through the decoder in pieces, so that the graph of only one piece exists
//! at a time (layer checkpointing; Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, Var};

#[path = "checkpoint_pass.rs"]
mod pass;

use crate::gradients::Gradients;
use crate::layer_direct::Activations;
use crate::rope::Angles;
use crate::{Decoder, Error, Result};
pub(crate) use pass::Pass;
use pass::pull_back;

/// What a forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpointing {
    /// The graph of every layer: fastest, and most memory.
    Off,
    /// The input of every n-th layer; the n layers from there are computed again when needed.
    Every(usize),
}

/// A forward pass that can be differentiated once.
#[derive(Debug)]
pub struct Tape<'a> {
    decoder: &'a Decoder,
    angles: Angles,
    ids: Tensor,
    segments: Vec<Segment>,
    /// Input of the final norm.
    last: Tensor,
    hidden: Tensor,
}

/// Some consecutive layers, with what is needed to differentiate them.
#[derive(Debug)]
struct Segment {
    layers: Range<usize>,
    kept: Kept,
}

impl Segment {
    fn input(&self) -> &Tensor {
        match &self.kept {
            Kept::Input(input) | Kept::Graph { input, .. } | Kept::Activations { input, .. } => {
                input
            }
        }
    }
}

#[derive(Debug)]
enum Kept {
    /// The segment's input, to compute it again.
    Input(Tensor),
    /// Its input as the graph's leaf, and its output with the graph.
    Graph { input: Tensor, output: Tensor },
    /// Its input, and what its one layer needs for the way back without a graph.
    Activations {
        input: Tensor,
        activations: Box<Activations>,
    },
}

impl<'a> Tape<'a> {
    pub(crate) fn record(
        decoder: &'a Decoder,
        ids: &Tensor,
        angles: Angles,
        checkpointing: Checkpointing,
    ) -> Result<Self> {
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
        let mut x = decoder.embed(ids)?.detach();
        let count = decoder.layers().len();
        let spans = decoder.direct_spans(&x, &angles)?;
        let mut pass = Pass::new(decoder, &angles, spans.as_deref());
        let mut segments = Vec::with_capacity(count.div_ceil(every));
        for start in (0..count).step_by(every) {
            let layers = start..count.min(start.saturating_add(every));
            let kept = match checkpointing {
                Checkpointing::Off => pass.keep(start, &mut x)?,
                Checkpointing::Every(_) => {
                    let output = pass.run(&layers, &x)?;
                    Kept::Input(std::mem::replace(&mut x, output))
                }
            };
            segments.push(Segment { layers, kept });
        }
        drop(pass);
        let hidden = decoder.finish(&x)?.detach();
        Ok(Self {
            decoder,
            angles,
            ids: ids.clone(),
            segments,
            last: x,
            hidden,
        })
    }

    /// Hidden states after the final norm.
    ///
    /// # Shapes
    /// [B, T, d]
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// The residual stream after the first `layer` layers, where the tape keeps it: between two of its pieces, so at
    /// every layer but the last unless several are checkpointed together.
    ///
    /// # Shapes
    /// [B, T, d], f32
    pub fn layer_output(&self, layer: usize) -> Option<&Tensor> {
        let above = |segment: &&Segment| layer > 0 && segment.layers.start == layer;
        self.segments.iter().find(above).map(Segment::input)
    }

    /// Adds to `gradients` what every trained parameter below the head gets from the loss.
    ///
    /// # Shapes
    /// grad_hidden [B, T, d]: the loss's gradient in [`hidden`](Self::hidden).
    ///
    /// # Errors
    /// When `grad_hidden` has another shape.
    pub fn backward(self, grad_hidden: &Tensor, gradients: &mut Gradients) -> Result<()> {
        self.backward_with(grad_hidden, None, gradients)
    }

    /// As [`backward`](Self::backward), for a loss that also sees the residual stream after some layers.
    ///
    /// # Shapes
    /// at_layer: a number of layers and the loss's gradient in their [`layer_output`](Self::layer_output), [B, T, d].
    ///
    /// # Errors
    /// When a gradient has another shape, or the tape does not keep that layer's output.
    pub fn backward_with(
        self,
        grad_hidden: &Tensor,
        at_layer: Option<(usize, &Tensor)>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        if grad_hidden.dims() != self.hidden.dims() {
            let what = "the gradient of the hidden states";
            return Err(Error::shape(what, self.hidden.dims(), grad_hidden.dims()));
        }
        if let Some((layer, grad)) = at_layer {
            let kept = self.layer_output(layer).map(Tensor::dims).unwrap_or(&[]);
            if grad.dims() != kept {
                return Err(Error::shape(
                    "the gradient of a layer's output",
                    kept,
                    grad.dims(),
                ));
            }
        }
        let Self {
            decoder,
            angles,
            ids,
            segments,
            last,
            hidden,
        } = self;
        let mut grad = grad_hidden.detach().to_dtype(hidden.dtype())?;
        drop(hidden);

        let input = Var::from_tensor(&last)?.into_inner();
        drop(last);
        let output = decoder.finish(&input)?;
        let trained: Vec<_> = decoder.norm().parameters().into_iter().collect();
        let Some(below) = pull_back(&input, output, &grad, &trained, gradients)? else {
            return Ok(());
        };
        grad = below;

        let spans = decoder.direct_spans(&grad, &angles)?;
        let mut pass = Pass::new(decoder, &angles, spans.as_deref());
        for segment in segments.into_iter().rev() {
            let first = segment.layers.start;
            match pass.pull_back(segment, &grad, gradients)? {
                Some(below) => grad = below,
                // Nothing below is trained.
                None => return Ok(()),
            }
            if let Some((_, own)) = at_layer.filter(|(layer, _)| *layer == first) {
                grad = (&grad + own.detach().to_dtype(grad.dtype())?)?;
            }
        }
        embedding_gradient(decoder, &ids, &grad, gradients)
    }
}

/// A scalar whose gradient in `output` is `grad`.
fn seed(output: &Tensor, grad: &Tensor) -> Result<Tensor> {
    if output.device().is_cpu() {
        Ok(output.apply_op1(Seed { grad: grad.clone() })?)
    } else {
        Ok((output * grad)?.sum_all()?)
    }
}

/// Stands for `sum(output * grad)`; its value is never read, so it is not computed.
struct Seed {
    grad: Tensor,
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "gradient-seed"
    }

    fn cpu_fwd(
        &self,
        _output: &CpuStorage,
        _layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(
        &self,
        _output: &Tensor,
        _seed: &Tensor,
        _one: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.grad.clone()))
    }
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

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
