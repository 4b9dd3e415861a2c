//! Provides the way through some of the decoder's layers, forward and back: without a graph where the layers allow it
//! ([`Direct`]), else through candle's.

use std::ops::Range;

use candle_core::{Tensor, Var};

use super::{Kept, Segment, seed};
use crate::attention_kernel::Span;
use crate::element::lend;
use crate::gradients::Gradients;
use crate::layer_direct::{Activations, Direct};
use crate::rope::Angles;
use crate::workspace::Workspace;
use crate::{Decoder, Result};

/// One pass over the layers.
pub(crate) struct Pass<'a> {
    decoder: &'a Decoder,
    angles: &'a Angles,
    /// `None` where the layers need candle's graph.
    direct: Option<Direct<'a>>,
}

impl<'a> Pass<'a> {
    /// `spans`: what [`Decoder::direct_spans`] gave for these rows.
    pub(crate) fn new(decoder: &'a Decoder, angles: &'a Angles, spans: Option<&'a [Span]>) -> Self {
        let direct = spans.map(|spans| Direct {
            angles,
            spans,
            space: Workspace::default(),
        });
        Self {
            decoder,
            angles,
            direct,
        }
    }

    /// The output of some layers; nothing is kept.
    pub(crate) fn run(&mut self, layers: &Range<usize>, input: &Tensor) -> Result<Tensor> {
        let mut x = input.clone();
        for layer in &self.decoder.layers()[layers.clone()] {
            x = match &mut self.direct {
                None => layer.forward(&x, self.angles, None)?.detach(),
                Some(direct) => {
                    let input = lend(&x);
                    let (output, activations) = direct.forward(layer, input.numbers()?)?;
                    direct.recycle(activations);
                    Tensor::from_vec(output, x.shape(), x.device())?
                }
            };
        }
        Ok(x)
    }

    /// Moves x through layer `index` and keeps what its way back needs.
    pub(super) fn keep(&mut self, index: usize, x: &mut Tensor) -> Result<Kept> {
        let layer = &self.decoder.layers()[index];
        let Some(direct) = &mut self.direct else {
            let input = leaf(self.decoder, index, x)?;
            let output = layer.forward(&input, self.angles, None)?;
            *x = output.detach();
            return Ok(Kept::Graph { input, output });
        };
        let input = x.clone();
        let (output, activations) = direct.forward(layer, lend(&input).numbers()?)?;
        *x = Tensor::from_vec(output, input.shape(), input.device())?;
        Ok(Kept::Activations {
            input,
            activations: Box::new(activations),
        })
    }

    /// Given dL/d output of a segment, adds the gradients of what is trained in it and returns dL/d input, where something
    /// below is trained.
    pub(super) fn pull_back(
        &mut self,
        segment: Segment,
        grad: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let Segment { layers, kept } = segment;
        match (kept, self.direct.is_some()) {
            (Kept::Graph { input, output }, _) => {
                self.pull_back_graph(&layers, &input, output, grad, gradients)
            }
            (Kept::Input(input), false) => {
                let input = leaf(self.decoder, layers.start, &input)?;
                let mut output = input.clone();
                for layer in &self.decoder.layers()[layers.clone()] {
                    output = layer.forward(&output, self.angles, None)?;
                }
                self.pull_back_graph(&layers, &input, output, grad, gradients)
            }
            (Kept::Input(input), true) => self.pull_back_again(&layers, input, grad, gradients),
            (Kept::Activations { input, activations }, _) => {
                self.pull_back_direct(layers.start, &input, *activations, grad, gradients)
            }
        }
    }

    /// Through layers of which only the first one's input was kept. Nobody asks for the last one's output.
    fn pull_back_again(
        &mut self,
        layers: &Range<usize>,
        input: Tensor,
        grad: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let mut x = input;
        let mut kept = Vec::with_capacity(layers.len());
        for index in layers.clone() {
            let Some(direct) = &mut self.direct else {
                return Ok(None);
            };
            let layer = &self.decoder.layers()[index];
            let input = x.clone();
            let numbers = lend(&input);
            let activations = if index + 1 < layers.end {
                let (output, activations) = direct.forward(layer, numbers.numbers()?)?;
                x = Tensor::from_vec(output, input.shape(), input.device())?;
                activations
            } else {
                direct.activations(layer, numbers.numbers()?)?
            };
            drop(numbers);
            kept.push((index, input, activations));
        }
        let mut grad = grad.clone();
        for (index, input, activations) in kept.into_iter().rev() {
            match self.pull_back_direct(index, &input, activations, &grad, gradients)? {
                Some(below) => grad = below,
                None => return Ok(None),
            }
        }
        Ok(Some(grad))
    }

    fn pull_back_direct(
        &mut self,
        index: usize,
        input: &Tensor,
        kept: Activations,
        grad: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let Some(direct) = &mut self.direct else {
            return Ok(None);
        };
        let layer = &self.decoder.layers()[index];
        let below = trained_below(self.decoder, index);
        let grad = lend(grad).numbers()?.to_vec();
        let x = lend(input);
        let grad = direct.backward(layer, x.numbers()?, kept, grad, below, gradients)?;
        let tensor = |grad| Tensor::from_vec(grad, input.shape(), input.device());
        Ok(grad.map(tensor).transpose()?)
    }

    fn pull_back_graph(
        &self,
        layers: &Range<usize>,
        input: &Tensor,
        output: Tensor,
        grad: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let trained: Vec<_> = self.decoder.layers()[layers.clone()]
            .iter()
            .flat_map(|layer| layer.parameters())
            .collect();
        pull_back(input, output, grad, &trained, gradients)
    }
}

fn trained_below(decoder: &Decoder, first: usize) -> bool {
    decoder.trained_embedding().is_some()
        || decoder.layers()[..first]
            .iter()
            .any(|layer| !layer.parameters().is_empty())
}

/// The input of the layers from `first` on: a variable where something below is trained and so needs
/// the gradient here, a constant otherwise, which spares the lowest layer the way to its input.
fn leaf(decoder: &Decoder, first: usize, input: &Tensor) -> Result<Tensor> {
    if trained_below(decoder, first) {
        Ok(Var::from_tensor(input)?.into_inner())
    } else {
        Ok(input.clone())
    }
}

/// Given dL/d output, adds the gradients of `trained` and returns dL/d input, where that was asked for.
pub(super) fn pull_back(
    input: &Tensor,
    output: Tensor,
    grad: &Tensor,
    trained: &[(String, Var)],
    gradients: &mut Gradients,
) -> Result<Option<Tensor>> {
    let store = seed(&output, grad)?.backward()?;
    drop(output);
    gradients.add_from(&store, trained)?;
    Ok(store.get(input).map(Tensor::detach))
}
