//! Provides what a run needs beside the decoder: the head's geometry and the projection.

use candle_core::Tensor;
use distill_model::{Checkpointing, Decoder};

use super::passes::Passes;
use crate::{
    Error, Result,
    client::ServerInfo,
    config::{TrainConfig, Tune},
    loss::{HeadGeometry, HiddenProjection, LossConfig},
};

/// The effective rows of the head, with what the loss makes of them once.
pub(super) fn head_geometry(
    decoder: &Decoder,
    vocab_size: u32,
    basis: Option<Tensor>,
) -> Result<HeadGeometry> {
    let head = decoder.head()?.narrow(0, 0, vocab_size as usize)?;
    Ok(HeadGeometry::new(&head, basis.as_ref())?)
}

/// The projection of the teacher's hidden states, where the loss uses them at some step.
pub(super) fn projection(
    config: &TrainConfig,
    most: &LossConfig,
    info: &ServerInfo,
    decoder: &Decoder,
) -> Result<Option<HiddenProjection>> {
    let (true, Some((_, size))) = (most.needs_states(), info.state) else {
        return Ok(None);
    };
    let model = decoder.config();
    let layer = config.loss.align.layer().student_layer;
    if let Some(layer) = layer.filter(|layer| *layer >= model.num_hidden_layers) {
        return Err(Error::Config(format!(
            "layers: {layer} is not below the student's {} layers; `last` is the last one's output after the norm",
            model.num_hidden_layers
        )));
    }
    if layer == Some(0) && config.tune == Tune::Lora {
        return Err(Error::Config(
            "layers: no adapter is below the student's layer 0, what its embeddings give; take a layer above it, or --tune full"
                .into(),
        ));
    }
    let teacher_state = config.loss.align.layer().teacher_state;
    let states = info.state_layers.len().max(1);
    if teacher_state >= states {
        return Err(Error::Config(format!(
            "layers: state {teacher_state} was asked for, but the capture has {states}, counted from 0 (layers {:?} of the teacher)",
            info.state_layers
        )));
    }
    let sizes = (size as usize / states, model.hidden_size);
    let projection = HiddenProjection::new(sizes.0, sizes.1, config.seed, decoder.device())?;
    Ok(Some(projection.of_state(teacher_state)))
}

pub(super) fn checkpointing(config: &TrainConfig) -> Checkpointing {
    if config.checkpointing {
        Checkpointing::Every(config.checkpoint_every)
    } else {
        Checkpointing::Off
    }
}

pub(super) fn passes(config: &TrainConfig) -> Passes {
    let sequences = config.batch_size;
    if config.packing {
        Passes::Packed {
            sequences,
            tokens: config.pack_tokens.unwrap_or(usize::MAX),
        }
    } else {
        Passes::Padded { sequences }
    }
}
