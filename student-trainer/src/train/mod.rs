/*! The training run: agree with the teacher, then step by step frames -> loss -> gradients -> update.

```text
 FrameSource ──> FrameReader ──> Objective::forward_backward ──> GradientWatch ──> Updates ──> Keeper: log, checkpoints
   (passes)        Examples        decoder, head_loss              NaN? severed?     AdamW        └──> adapter/ or model/
      ^                                                                                           ^
      └── cursor <── checkpoint, with --resume                Evaluation: held-out text ──────────┘
```

A teacher in swap mode lends the device: then the run is a row of stays there (`stay`), between which the state that a
checkpoint would hold is in host memory.
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
mod result;
mod setup;
mod source;
mod stay;
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
    client::{self, DeviceLease, StreamOptions, Vocabularies, fetch_basis, holder_name},
    config::{TrainConfig, Tune},
    report,
    run::{AdapterConfig, Card, RunDirectory, TeacherRecord},
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};
use agreement::{agree, identity};
use evaluation::Evaluation;
pub use example::Example;
use keeper::{Keeper, watch};
pub use loss_scale::{LossScaleState, LossScaler, Verdict};
pub use passes::Passes;
use source::FrameSource;
use stay::{Host, Setting, frames_a_step, stays};
pub use step::{Objective, StepLoss};
use tuned::Tuned;
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
    let run_directory = RunDirectory::create(&config.out)?;
    let summary = train(config, &run_directory, shutdown)?;
    memory::compare(&run_directory);
    Ok(summary)
}

/// Goes on with the run in `config.out`, from its newest checkpoint or, without one, from its start. On one CPU in f32 the
/// result is bitwise that of a run that was never interrupted. Of a finished run, a result that was harmed is written anew.
///
/// # Errors
/// As [`run`]; a setting that would make it another run; another teacher, corpus or student than before.
pub fn resume(config: &TrainConfig, shutdown: &Shutdown) -> Result<Ending> {
    config.validate()?;
    let run_directory = RunDirectory::reopen(&config.out)?;
    overrides::check(&run_directory.read_config()?, config)?;
    if let Some(summary) = run_directory.summary()?
        && result::is_whole(&run_directory, config, &summary)?
    {
        return Ok(Ending::FinishedBefore);
    }
    let summary = train(config, &run_directory, shutdown)?;
    memory::compare(&run_directory);
    Ok(Ending::Trained(summary))
}

fn train(
    config: &TrainConfig,
    run_directory: &RunDirectory,
    shutdown: &Shutdown,
) -> Result<Summary> {
    let checkpoints = Checkpoints::open(run_directory.path(), config.keep_last)?;
    let checkpoint = checkpoints.latest()?;
    if let Some(checkpoint) = &checkpoint
        && let Some(before) = checkpoint.settings()?
    {
        overrides::check(&before, config)?;
    }
    let place = Place::choose(&config.device, config.dtype)?.within(config.memory_budget_bytes);
    let mut files = StudentFiles::find(&config.student, shutdown)?;
    files
        .tokenizer
        .set_chat_template_kwargs(&config.chat_template_kwargs);
    let runtime = client::runtime()?;
    let agreement = runtime.block_on(agree(config, &files, shutdown))?;
    let (teacher, info) = (&agreement.teacher, &agreement.info);
    let reader = FrameReader::new(agreement.vocabularies, teacher, info, &files);
    let reader = runtime.block_on(reader)?;
    let identity = identity(info, &files)?;
    if let Some(checkpoint) = &checkpoint {
        checkpoint.state.identity.check(&identity)?;
        let frames_a_step = frames_a_step(config) as u64;
        let (state, steps) = (&checkpoint.state, agreement.total_steps);
        let sizes = state.check_sizes(steps, frames_a_step, info.sequence_count);
        sizes.map_err(|reason| checkpoint.refuse(reason))?;
    }

    let lora = match config.tune {
        Tune::Lora => Some(lora::choose(config)?),
        Tune::Full => None,
    };
    let basis = if agreement.most.needs_state() {
        runtime.block_on(fetch_basis(teacher, info))?
    } else {
        None
    };
    let handle = runtime.handle().clone();
    let evaluation = Evaluation::open(config, &files, &agreement, handle.clone(), shutdown)?;
    // From here on there is a run: nothing was written before.
    run_directory.begin(config)?;
    TeacherRecord::of(info).write(run_directory.path())?;
    memory::plan_ahead(config, run_directory, &files, info, &place)?;
    let start = RunState::start(agreement.total_steps, identity);
    let keeper = Keeper::open(
        config,
        run_directory,
        checkpoints,
        checkpoint.as_ref(),
        start,
    )?;
    let (vocab_size, token_ids) = match agreement.vocabularies {
        Vocabularies::Same => (info.vocab_size, files.config.vocab_size),
        Vocabularies::Other => (files.tokenizer.size(), info.vocab_size as usize),
    };
    let stream_options = StreamOptions {
        prefetch_frames: config.prefetch_frames,
        reconnect_attempts: config.reconnect_attempts,
        token_ids,
        ..StreamOptions::default()
    };
    let frames = FrameSource::new(
        handle.clone(),
        teacher.clone(),
        info.clone(),
        stream_options,
        shutdown.clone(),
        keeper.state.data.clone(),
    );
    let lease = info.lends_device().then(|| {
        let (teacher, holder) = (teacher.clone(), holder_name(&config.out));
        DeviceLease::new(handle, teacher, holder, config.reconnect_attempts)
    });
    let setting = Setting {
        config,
        run_directory,
        files: &files,
        place,
        agreement: &agreement,
        lora,
        basis,
        vocab_size,
        shutdown,
    };
    let host = Host {
        reader,
        evaluation,
        frames,
        watch: checkpoint.as_ref().map(watch),
        scaler: None,
        keeper,
        warnings: Warnings::default(),
        loss: StepLoss::default(),
    };
    stays(&setting, host, lease, checkpoint)
}

/// What PEFT is told of the adapters and their base.
fn adapter_config(lora: &LoraConfig, files: &StudentFiles) -> AdapterConfig {
    let mut config = AdapterConfig::new(lora, &files.base);
    config.revision = files.revision.clone();
    config
}

/// Leaves the result, and says that the run is finished where it is.
fn finish(
    setting: &Setting<'_>,
    tuned: &Tuned<'_>,
    keeper: &Keeper,
    loss: &StepLoss,
) -> Result<Summary> {
    let (config, run_directory) = (setting.config, setting.run_directory);
    let (state, is_done) = (&keeper.state, keeper.is_done(config));
    let summary = Summary {
        steps: state.step,
        loss: loss.clone(),
        adapter: tuned.publish(config, run_directory)?,
        interrupted: !is_done,
        stopped_early: keeper.is_stopped_early(config),
    };
    let card = Card {
        config,
        teacher: &TeacherRecord::of(&setting.agreement.info),
        base: &setting.files.base,
        revision: setting.files.revision.as_deref(),
        steps: state.step,
        sequences: state.data.frames,
    };
    card.write(&summary.adapter)?;
    if is_done {
        let best = state.evals.best.map(|best| {
            serde_json::json!({
                "step": best.step, "metric": config.best_metric, "value": best.value,
            })
        });
        run_directory.write_summary(&serde_json::json!({
            "steps": summary.steps,
            "total_steps": state.total_steps,
            "stopped_early": summary.stopped_early,
            "best": best,
            result::FILES: result::digests(&summary.adapter)?,
        }))?;
    }
    report::write_or_warn(run_directory.path());
    Ok(summary)
}
