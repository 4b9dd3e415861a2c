/*! The training run: agree with the teacher, then step by step frames -> loss -> gradients -> update.

```text
 FrameSource ──> FrameReader ──> Objective::forward_backward ──> GradientWatch ──> Updates ──> Keeper: log, checkpoints
   (passes)        Examples        decoder, head_loss              NaN? severed?     AdamW        └──> adapter/ or model/
      ^                                                                                           ^
      └── cursor <── checkpoint, with --resume                Evaluation: held-out text ──────────┘
```
*/

mod agreement;
mod evaluation;
mod example;
mod guard;
mod keeper;
mod lora;
mod loss_scale;
mod memory;
mod overrides;
mod passes;
mod setup;
mod source;
mod step;
mod trainer;
mod tuned;
mod updates;
mod warnings;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use distill_model::LoraConfig;

use crate::{
    Result,
    align::FrameReader,
    checkpoint::{Checkpoints, RunState},
    client::{self, StreamOptions, Vocabularies, fetch_basis},
    config::{TrainConfig, Tune},
    report,
    run::{AdapterConfig, RunDirectory},
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};
use agreement::{agree, identity};
use evaluation::Evaluation;
pub use example::Example;
use keeper::{Keeper, watch};
pub use loss_scale::{LossScaleState, LossScaler, Verdict};
pub use passes::Passes;
use setup::{checkpointing, head_geometry, passes, projection};
use source::FrameSource;
pub use step::{Objective, SolverSummary, StepLoss};
use trainer::Trainer;
use tuned::Tuned;
use updates::Updates;
use warnings::Warnings;

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Optimiser steps done.
    pub steps: usize,
    /// Loss of the last one, where this process did any.
    pub loss: StepLoss,
    /// Where the adapter is, or the model after full-parameter training.
    pub adapter: PathBuf,
    /// Whether someone asked to stop before all steps were done.
    pub interrupted: bool,
    /// Whether evaluations did not get better for too long.
    pub stopped_early: bool,
}

/// What a wish to train came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// Steps were done.
    Trained(Summary),
    /// The run was finished before; nothing was done.
    FinishedBefore,
}

/// Trains as `config` says. Blocks the thread; makes its own runtime for the network, so call it outside of one.
///
/// # Errors
/// Whatever stops the run; what was saved before stays.
pub fn run(config: &TrainConfig, shutdown: &Shutdown) -> Result<Summary> {
    config.validate()?;
    train(config, &RunDirectory::create(&config.out)?, shutdown)
}

/// Goes on with the run in `config.out`, from its newest checkpoint or, without one, from its start. On one CPU in f32 the
/// result is bitwise that of a run that was never interrupted.
///
/// # Errors
/// As [`run`]; a setting that would make it another run; another teacher, corpus or student than before.
pub fn resume(config: &TrainConfig, shutdown: &Shutdown) -> Result<Ending> {
    config.validate()?;
    let run_directory = RunDirectory::reopen(&config.out)?;
    overrides::check(&run_directory.read_config()?, config)?;
    if run_directory.summary()?.is_some() {
        return Ok(Ending::FinishedBefore);
    }
    train(config, &run_directory, shutdown).map(Ending::Trained)
}

fn train(
    config: &TrainConfig,
    run_directory: &RunDirectory,
    shutdown: &Shutdown,
) -> Result<Summary> {
    let checkpoints = Checkpoints::open(run_directory.path(), config.keep_last)?;
    let checkpoint = checkpoints.latest()?;
    let place = Place::choose(&config.device, config.dtype)?.within(config.memory_budget_bytes);
    let files = StudentFiles::find(&config.student, shutdown)?;
    let runtime = client::runtime()?;
    let agreement = runtime.block_on(agree(config, &files, shutdown))?;
    let (teacher, info) = (&agreement.teacher, &agreement.info);
    let reader = FrameReader::new(agreement.vocabularies, teacher, info, &files);
    let reader = runtime.block_on(reader)?;
    let identity = identity(info, &files)?;
    if let Some(checkpoint) = &checkpoint {
        checkpoint.state.identity.check(&identity)?;
    }
    run_directory.write_config(config)?;
    let on_cpu = place.device.is_cpu();
    let planned = memory::plan_ahead(config, run_directory, &files, info, on_cpu)?;

    let lora = match config.tune {
        Tune::Lora => Some(lora::choose(config)?),
        Tune::Full => None,
    };
    let decoder = match config.tune {
        Tune::Lora => files.load(config.quantize, &place, lora.clone())?,
        Tune::Full => files.load_trainable(&place)?,
    };
    if let Some(lora) = &lora {
        lora::start(config, lora, &decoder)?;
    }
    let basis = match agreement.most.needs_state() {
        true => runtime.block_on(fetch_basis(teacher, info))?,
        false => None,
    };
    let (vocab_size, token_ids) = match agreement.vocabularies {
        Vocabularies::Same => (info.vocab_size, files.config.vocab_size),
        Vocabularies::Other => (files.tokenizer.size(), info.vocab_size as usize),
    };
    let geometry = head_geometry(&decoder, vocab_size, basis)?;
    let projection = projection(config, &agreement.most, info, &decoder)?;
    let tuned = Tuned {
        adapter: lora.map(|lora| adapter_config(&lora, &files)),
        files: &files,
        parameters: decoder.parameters(),
        projection: projection.as_ref(),
    };
    let total_steps = agreement.total_steps;
    let mut updates = Updates::new(
        config,
        tuned.parameters.clone(),
        projection.as_ref(),
        total_steps,
    )?;
    if let Some(checkpoint) = &checkpoint {
        tuned.restore(checkpoint)?;
        updates.restore(checkpoint)?;
        tracing::info!(
            "resumed from {}: {} of {total_steps} steps are done",
            checkpoint.directory().display(),
            checkpoint.state.step
        );
    }
    let watch = watch(&tuned.parameters, checkpoint.as_ref());
    let start = RunState::start(total_steps, identity);
    let keeper = Keeper::open(
        config,
        run_directory,
        checkpoints,
        checkpoint.as_ref(),
        start,
    )?;
    let handle = runtime.handle().clone();
    let evaluation = Evaluation::open(
        config,
        &files,
        &decoder,
        &agreement,
        handle.clone(),
        shutdown,
    )?;
    let stream_options = StreamOptions {
        prefetch_frames: config.prefetch_frames,
        reconnect_attempts: config.reconnect_attempts,
        token_ids,
    };
    let frames = FrameSource::new(
        handle,
        teacher.clone(),
        info.clone(),
        stream_options,
        shutdown.clone(),
        keeper.state.data.clone(),
    );
    let mut scaler = LossScaler::new(decoder.dtype());
    scaler.restore(keeper.state.loss_scale);
    let mut trainer = Trainer {
        config,
        run_directory,
        objective: Objective {
            decoder: &decoder,
            geometry: &geometry,
            trains_head: config.tune == Tune::Full,
            projection: projection.as_ref(),
            checkpointing: checkpointing(config),
            passes: passes(config),
        },
        tuned,
        reader,
        evaluation,
        frames,
        updates,
        watch,
        keeper,
        scaler,
        warnings: Warnings::default(),
        loss: StepLoss::default(),
    };
    trainer
        .train(shutdown)
        .map_err(|error| place.explained(error))?;
    memory::compare(planned.as_ref(), on_cpu);
    finish(&trainer)
}

/// What PEFT is told of the adapters and their base.
fn adapter_config(lora: &LoraConfig, files: &StudentFiles) -> AdapterConfig {
    let mut config = AdapterConfig::new(lora, &files.base);
    config.revision = files.revision.clone();
    config
}

/// Leaves the result, and says that the run is finished where it is.
fn finish(trainer: &Trainer<'_>) -> Result<Summary> {
    let adapter = trainer
        .tuned
        .publish(trainer.config, trainer.run_directory)?;
    let state = &trainer.keeper.state;
    let summary = Summary {
        steps: state.step,
        loss: trainer.loss.clone(),
        adapter,
        interrupted: !trainer.is_done(),
        stopped_early: trainer.is_stopped_early(),
    };
    if trainer.is_done() {
        let best = state.evals.best.map(|best| {
            serde_json::json!({
                "step": best.step, "metric": trainer.config.best_metric, "value": best.value,
            })
        });
        trainer.run_directory.write_summary(&serde_json::json!({
            "steps": summary.steps,
            "total_steps": state.total_steps,
            "stopped_early": summary.stopped_early,
            "best": best,
        }))?;
    }
    report::write_or_warn(trainer.run_directory.path());
    Ok(summary)
}
