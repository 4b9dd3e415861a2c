/*! The training run: agree with the teacher, then step by step frames -> loss -> gradients -> update.

```text
 FrameSource ──> FrameReader ──> Objective::forward_backward ──> GradientWatch ──> AdamW ──> metrics, progress
   (passes)        Examples        decoder, head_loss              NaN? severed?     clip, schedule        └──> adapter
```
*/

mod example;
mod guard;
mod lora;
mod source;
mod step;
mod trainer;

#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use candle_core::Tensor;
use distill_model::{Checkpointing, Decoder};
use distill_proto::StateKind;

use crate::{
    Error, Result,
    align::{FrameReader, check_loss},
    client::{self, ConnectOptions, ServerInfo, StreamOptions, Teacher, Vocabularies, fetch_basis},
    config::TrainConfig,
    loss::{HeadGeometry, HiddenProjection, LossConfig},
    run::{AdapterConfig, RunDirectory, save_adapter, save_projection},
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};
pub use example::Example;
use source::FrameSource;
pub use step::{Objective, SolverSummary, StepLoss};
use trainer::Trainer;

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Optimiser steps done.
    pub steps: usize,
    /// Loss of the last one.
    pub loss: StepLoss,
    /// Where the adapter is.
    pub adapter: PathBuf,
    /// Whether someone asked to stop before all steps were done.
    pub interrupted: bool,
}

/// Trains as `config` says. Blocks the thread; makes its own runtime for the network, so call it outside of one.
///
/// # Errors
/// Whatever stops the run; what was saved before stays.
pub fn run(config: &TrainConfig, shutdown: &Shutdown) -> Result<Summary> {
    config.validate()?;
    let run_directory = RunDirectory::create(&config.out)?;
    let place = Place::choose(&config.device, config.dtype)?;
    let files = StudentFiles::open(&config.student)?;
    let runtime = client::runtime()?;
    let Agreement {
        teacher,
        info,
        vocabularies,
        total_steps,
        most,
    } = runtime.block_on(agree(config, &files, shutdown))?;
    let reader = FrameReader::new(vocabularies, &teacher, &info, &files);
    let reader = runtime.block_on(reader)?;
    run_directory.write_config(config)?;

    let lora = lora::choose(config)?;
    let decoder = files.load(config.quantize, &place, Some(lora.clone()))?;
    lora::start(config, &lora, &decoder)?;
    let basis = match most.needs_state() {
        true => runtime.block_on(fetch_basis(&teacher, &info))?,
        false => None,
    };
    let (vocab_size, token_ids) = match vocabularies {
        Vocabularies::Same => (info.vocab_size, files.config.vocab_size),
        Vocabularies::Other => (files.tokenizer.size(), info.vocab_size as usize),
    };
    let geometry = head_geometry(&decoder, vocab_size, basis)?;
    let stream_options = StreamOptions {
        prefetch_frames: config.prefetch_frames,
        reconnect_attempts: config.reconnect_attempts,
        token_ids,
    };
    let handle = runtime.handle().clone();
    let projection = projection(config, &most, &info, &decoder)?;
    let frames = FrameSource::new(
        handle,
        teacher,
        info.clone(),
        stream_options,
        shutdown.clone(),
    );
    let trainer = Trainer {
        config,
        run_directory: &run_directory,
        parameters: decoder.parameters(),
        objective: Objective {
            decoder: &decoder,
            geometry: &geometry,
            projection: projection.as_ref(),
            checkpointing: checkpointing(config),
        },
        projection: projection.as_ref(),
        reader,
        total_steps,
    };
    let (steps, loss) = trainer.train(frames, shutdown)?;

    let adapter = run_directory.join("adapter");
    let base = files
        .dir
        .canonicalize()
        .unwrap_or_else(|_| files.dir.clone());
    let adapter_config = AdapterConfig::new(&lora, &base.to_string_lossy());
    save_adapter(&adapter, &adapter_config, &trainer.parameters)?;
    if let Some(projection) = &projection {
        save_projection(&adapter, projection)?;
    }
    files.tokenizer.copy_to(&adapter)?;
    Ok(Summary {
        steps,
        loss,
        adapter,
        interrupted: steps < trainer.total_steps,
    })
}

/// What a run is about, agreed with the teacher.
struct Agreement {
    teacher: Teacher,
    info: ServerInfo,
    vocabularies: Vocabularies,
    total_steps: usize,
    /// The loss with every part that has a weight at some step.
    most: LossConfig,
}

/// Connects and checks everything that can be checked before any weight is read.
async fn agree(
    config: &TrainConfig,
    files: &StudentFiles,
    shutdown: &Shutdown,
) -> Result<Agreement> {
    let options = ConnectOptions {
        address: config.teacher.clone(),
        ca_cert: config.ca_cert.clone(),
        token_file: config.token_file.clone(),
        timeout: Duration::from_secs(config.connect_timeout_seconds),
    };
    let teacher = Teacher::connect(&options, shutdown).await?;
    let info = teacher.info().await?;
    let vocabularies = info.check_student(&files.tokenizer, files.config.vocab_size)?;
    let total_steps = total_steps(config, info.sequence_count)?;
    let most = config.loss.at_its_most(total_steps);
    check_loss(vocabularies, &most)?;
    most.check_teacher(
        info.estimator,
        &info.temperatures,
        info.state.map(|(kind, _)| kind),
    )?;
    tracing::info!(
        "teacher: {} ({}), {} sequences, {} targets of {} tokens, top {} of {} ids",
        info.model_name,
        info.server_version,
        info.sequence_count,
        info.target_count,
        info.token_count,
        info.top_k,
        info.vocab_size
    );
    match info.state {
        Some((StateKind::Sketch, rank)) => tracing::info!(
            "state: a sketch of rank {rank}, off by {:.1} % of the centred logits on held-out text",
            100.0 * info.state_error
        ),
        Some((StateKind::Hidden, size)) => tracing::info!(
            "state: the teacher's hidden states after layer {} ({size})",
            info.state_layer
        ),
        _ => {}
    }
    Ok(Agreement {
        teacher,
        info,
        vocabularies,
        total_steps,
        most,
    })
}

/// The effective rows of the head, with what the loss makes of them once.
fn head_geometry(
    decoder: &Decoder,
    vocab_size: u32,
    basis: Option<Tensor>,
) -> Result<HeadGeometry> {
    let head = decoder.head().narrow(0, 0, vocab_size as usize)?;
    Ok(HeadGeometry::new(&head, basis.as_ref())?)
}

/// The projection of the teacher's hidden states, where the loss uses them at some step.
fn projection(
    config: &TrainConfig,
    most: &LossConfig,
    info: &ServerInfo,
    decoder: &Decoder,
) -> Result<Option<HiddenProjection>> {
    let (true, Some((_, size))) = (most.hidden_weight > 0.0, info.state) else {
        return Ok(None);
    };
    let model = decoder.config();
    if config.loss.hidden_layer >= model.num_hidden_layers {
        return Err(Error::Config(format!(
            "hidden_layer: {} is not below the student's {} layers; 0 is the last one's output after the norm",
            config.loss.hidden_layer, model.num_hidden_layers
        )));
    }
    let sizes = (size as usize, model.hidden_size);
    let projection = HiddenProjection::new(sizes.0, sizes.1, config.seed, decoder.device())?;
    tracing::info!(
        "hidden states: a learned projection from {} to {}",
        sizes.0,
        sizes.1
    );
    Ok(Some(projection))
}

fn checkpointing(config: &TrainConfig) -> Checkpointing {
    match config.checkpointing {
        true => Checkpointing::Every(1),
        false => Checkpointing::Off,
    }
}

/// `steps`, or as many as `epochs` passes take; a step never reaches across the end of a pass.
fn total_steps(config: &TrainConfig, sequence_count: u64) -> Result<usize> {
    if sequence_count == 0 {
        return Err(Error::Stream(
            "the teacher's corpus has no sequence with a target".into(),
        ));
    }
    let sequences_a_step = (config.batch_size * config.grad_accumulation) as u64;
    let steps_a_pass = sequence_count.div_ceil(sequences_a_step) as usize;
    Ok(config.steps.unwrap_or(config.epochs * steps_a_pass))
}
