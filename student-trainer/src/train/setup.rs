//! Provides what a run needs beside the decoder: the head's geometry, the projections of hidden states, and the frames.

use candle_core::{DType, Tensor};
use distill_model::{Checkpointing, Decoder, LoraConfig};
use tokio::runtime::Handle;

use super::{
    Setting,
    keeper::Keeper,
    passes::Passes,
    source::{FrameSource, Order},
    trainer::frames_a_step,
};
use crate::{
    Error, Result,
    client::{ServerInfo, StreamOptions, Vocabularies},
    config::{TrainConfig, Tune},
    loss::{Centering, HeadGeometry, HiddenProjection, LossConfig},
    run::AdapterConfig,
    student::StudentFiles,
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

/// The projections of the teacher's hidden states, where the loss uses them at some step: one for each pair of layers.
pub(super) fn projections(
    config: &TrainConfig,
    most: &LossConfig,
    info: &ServerInfo,
    decoder: &Decoder,
) -> Result<Vec<HiddenProjection>> {
    let (true, Some((_, size))) = (most.needs_states(), info.state) else {
        return Ok(Vec::new());
    };
    let (model, layers) = (decoder.config(), &config.loss.align.layers);
    let refuse = |what: String| Err(Error::Config(format!("layers: {what}")));
    let (states, piece) = (info.state_layers.len().max(1), piece(config));
    for layer in layers {
        if layer.teacher_state >= states {
            return refuse(format!(
                "state {} was asked for, but the capture has {states}, counted from 0 (layers {:?} of the teacher)",
                layer.teacher_state, info.state_layers
            ));
        }
        let Some(number) = layer.student_layer else {
            continue;
        };
        if number >= model.num_hidden_layers {
            return refuse(format!(
                "{number} is not below the student's {} layers; `last` is the last one's output after the norm",
                model.num_hidden_layers
            ));
        }
        if !number.is_multiple_of(piece) {
            return refuse(format!(
                "the output of the student's layer {number} is not kept with checkpoint_every {piece}; take a multiple of {piece}, \
                 `last`, or --checkpoint-every 1"
            ));
        }
    }
    // Beside others the embeddings shape the plan.
    let trains_nothing = layers.iter().all(|layer| layer.student_layer == Some(0));
    if trains_nothing && config.tune == Tune::Lora {
        return refuse(
            "no adapter is below the student's layer 0, what its embeddings give; take a layer above it too, or --tune full"
                .to_owned(),
        );
    }
    let (sizes, device) = (
        (size as usize / states, model.hidden_size),
        decoder.device(),
    );
    let projections = HiddenProjection::random(layers, sizes, config.seed, device)?;
    if config.loss.align.centering() == Centering::Sequence {
        return Ok(projections);
    }
    // Known when they are fitted, or from a checkpoint.
    let mean = |size: usize| Tensor::zeros(size, DType::F32, device);
    let (teacher, student) = (mean(sizes.0)?, mean(sizes.1)?);
    let projections = projections.into_iter();
    projections
        .map(|one| Ok(one.with_means(&teacher, &student)?))
        .collect()
}

/// Layers between two outputs that a pass keeps.
fn piece(config: &TrainConfig) -> usize {
    if config.checkpointing {
        config.checkpoint_every
    } else {
        1
    }
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

/// The frames of the run, from where it is.
pub(super) fn frame_source(
    setting: &Setting<'_>,
    runtime: &Handle,
    keeper: &Keeper,
) -> FrameSource {
    let Setting {
        config,
        files,
        agreement,
        ..
    } = setting;
    let token_ids = match agreement.vocabularies {
        Vocabularies::Same => files.config.vocab_size,
        Vocabularies::Other => agreement.info.vocab_size as usize,
    };
    let options = StreamOptions {
        prefetch_frames: config.prefetch_frames,
        reconnect_attempts: config.reconnect_attempts,
        token_ids,
        ..StreamOptions::default()
    };
    FrameSource::new(
        runtime.clone(),
        agreement.teacher.clone(),
        agreement.info.clone(),
        options,
        Order {
            buffer: config.shuffle_buffer,
            seed: config.seed,
            step: frames_a_step(config),
            share: setting.ranks.share(),
        },
        setting.shutdown.clone(),
        keeper.state.data.clone(),
    )
}

/// What PEFT is told of the adapters and their base.
pub(super) fn adapter_config(lora: &LoraConfig, files: &StudentFiles) -> AdapterConfig {
    let mut config = AdapterConfig::new(lora, &files.base);
    config.revision = files.revision.clone();
    config
}
