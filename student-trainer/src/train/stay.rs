/*! Provides the stays of a run on the device: one where the device is its own, a row of them where the teacher shares it.

```text
 frames of the next step at hand ──> lease: wait for the grant ──> load the student, restore ──> steps
      ^                                                                                           │ asked to give back
      └── release <── drop the student <── parameters and moments to host memory <────────────────┘
```

Between two stays the run is what a checkpoint would hold, so it goes on as bitwise the same one as after a resume.
*/

use std::time::Instant;

use candle_core::{Tensor, Var};
use distill_model::{LoraConfig, hand_back};

use super::{
    StepLoss, Summary, adapter_config,
    agreement::Agreement,
    evaluation::Evaluation,
    finish,
    guard::GradientWatch,
    keeper::Keeper,
    lora,
    loss_scale::LossScaler,
    setup::{checkpointing, head_geometry, passes, projection},
    source::FrameSource,
    step::Objective,
    trainer::{Pause, Trainer},
    tuned::Tuned,
    updates::Updates,
    warnings::Warnings,
};
use crate::{
    Error, Result,
    align::FrameReader,
    checkpoint::{Carried, Checkpoint, Saved},
    client::DeviceLease,
    config::{TrainConfig, Tune},
    loss::HiddenProjection,
    run::{PROJECTION_FILE, RunDirectory},
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};

/// What is settled before the first stay.
pub(super) struct Setting<'a> {
    pub config: &'a TrainConfig,
    pub run_directory: &'a RunDirectory,
    pub files: &'a StudentFiles,
    pub place: Place,
    pub agreement: &'a Agreement,
    /// The adapters, where it is not the whole model that is trained.
    pub lora: Option<LoraConfig>,
    /// What the loss needs of the teacher's head, on the host.
    pub basis: Option<Tensor>,
    /// Rows of the student's head that are in the softmax.
    pub vocab_size: u32,
    pub shutdown: &'a Shutdown,
}

/// What stays in host memory between two stays.
pub(super) struct Host<'a> {
    pub reader: FrameReader<'a>,
    pub evaluation: Option<Evaluation<'a>>,
    pub frames: FrameSource,
    /// None before the first student is there.
    pub watch: Option<GradientWatch>,
    /// None before the first student is there.
    pub scaler: Option<LossScaler>,
    pub keeper: Keeper,
    pub warnings: Warnings,
    pub loss: StepLoss,
}

/// What a change of hands took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handover {
    /// From being asked to having left; none where nobody asked.
    pub release_seconds: Option<f64>,
    /// From then to being back.
    pub acquire_seconds: f64,
    /// Of these, from the grant on: the student is read and goes on from what it was.
    pub load_seconds: f64,
}

/// How a stay ended.
enum Left {
    Over(Summary),
    /// The device was asked for.
    Carrying(Carried),
}

/// Frames of one optimiser step.
pub(super) fn frames_a_step(config: &TrainConfig) -> usize {
    config.batch_size * config.grad_accumulation
}

/// Trains: in one stay, or under a lease in as many as the teacher makes of it.
pub(super) fn stays(
    setting: &Setting<'_>,
    mut host: Host<'_>,
    mut lease: Option<DeviceLease>,
    checkpoint: Option<Checkpoint>,
) -> Result<Summary> {
    let mut carried: Option<Carried> = None;
    let mut handover = None;
    loop {
        if let Some(lease) = &mut lease {
            // The next frames come before the device: who holds it without any keeps the teacher from making them.
            let is_done = host.keeper.is_done(setting.config);
            let there = is_done || host.frames.wait(frames_a_step(setting.config))?;
            if !there || !lease.acquire(setting.shutdown)? {
                return stopped(setting, &mut host, carried, checkpoint.as_ref());
            }
        }
        let from_disk = checkpoint
            .as_ref()
            .map(|checkpoint| checkpoint as &dyn Saved);
        let saved = carried.as_ref().map(|carried| carried as &dyn Saved);
        let outcome = stay(
            setting,
            &mut host,
            saved.or(from_disk),
            lease.as_ref(),
            handover,
        )
        .map_err(|error| setting.place.explained(error));
        if let Some(lease) = &mut lease {
            // Nothing of this run is on the device any more; after a failure the end of the process sees to that.
            if outcome.is_ok() {
                hand_back(&setting.place.device)?;
            }
            let asked = lease.give_back_since();
            lease.release();
            handover = Some(Leaving {
                release_seconds: asked.map(|asked| asked.elapsed().as_secs_f64()),
                at: Instant::now(),
            });
        }
        match outcome? {
            Left::Over(summary) => return Ok(summary),
            Left::Carrying(state) => carried = Some(state),
        }
    }
}

/// When the device was left.
#[derive(Clone, Copy)]
struct Leaving {
    release_seconds: Option<f64>,
    at: Instant,
}

/// Loads the student, goes on from what was `saved`, and trains until the run is over or the device is asked for.
fn stay(
    setting: &Setting<'_>,
    host: &mut Host<'_>,
    saved: Option<&dyn Saved>,
    lease: Option<&DeviceLease>,
    leaving: Option<Leaving>,
) -> Result<Left> {
    let arriving = Instant::now();
    let Setting {
        config,
        run_directory,
        files,
        place,
        agreement,
        lora,
        ..
    } = setting;
    let decoder = match lora {
        Some(lora) => files.load(config.quantize, place, Some(lora.clone()))?,
        None => files.load_trainable(place)?,
    };
    if let (Some(lora), None) = (lora, leaving) {
        lora::start(config, lora, &decoder)?;
    }
    let geometry = head_geometry(&decoder, setting.vocab_size, setting.basis.clone())?;
    let projection = projection(config, &agreement.most, &agreement.info, &decoder)?;
    let tuned = Tuned {
        adapter: lora.as_ref().map(|lora| adapter_config(lora, files)),
        files,
        parameters: decoder.parameters(),
        projection: projection.as_ref(),
    };
    let (parameters, steps) = (tuned.parameters.clone(), agreement.total_steps);
    let mut updates = Updates::new(config, parameters, projection.as_ref(), steps)?;
    if let Some(saved) = saved {
        tuned.restore(saved)?;
        updates.restore(saved)?;
    }
    let loss_scale = host.keeper.state.loss_scale;
    let handover = leaving.map(|leaving| Handover {
        release_seconds: leaving.release_seconds,
        acquire_seconds: leaving.at.elapsed().as_secs_f64(),
        load_seconds: arriving.elapsed().as_secs_f64(),
    });
    if let Some(handover) = &handover {
        tracing::info!(
            "the student is back after {:.1} s, {:.1} s of them to load",
            handover.acquire_seconds,
            handover.load_seconds
        );
    }
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
        updates,
        reader: &host.reader,
        evaluation: host.evaluation.as_ref(),
        frames: &mut host.frames,
        watch: host
            .watch
            .get_or_insert_with(|| GradientWatch::new(&tuned.parameters)),
        scaler: host.scaler.get_or_insert_with(|| {
            let mut scaler = LossScaler::new(decoder.dtype());
            scaler.restore(loss_scale);
            scaler
        }),
        keeper: &mut host.keeper,
        warnings: &mut host.warnings,
        loss: &mut host.loss,
        lease,
        handover,
        tuned,
    };
    match trainer.train(setting.shutdown)? {
        Pause::GiveBack => Ok(Left::Carrying(Carried::of(trainer.files()?)?)),
        Pause::Over => {
            let (tuned, keeper) = (&trainer.tuned, &*trainer.keeper);
            let summary = finish(setting, tuned, keeper, trainer.loss)?;
            Ok(Left::Over(summary))
        }
    }
}

/// Ends a run that someone stopped while it was not on the device: what was carried is in a checkpoint then, and the result
/// is left as it is.
fn stopped(
    setting: &Setting<'_>,
    host: &mut Host<'_>,
    carried: Option<Carried>,
    checkpoint: Option<&Checkpoint>,
) -> Result<Summary> {
    let from_disk = checkpoint.map(|checkpoint| checkpoint as &dyn Saved);
    let saved = carried.as_ref().map(|carried| carried as &dyn Saved);
    let Some(saved) = saved.or(from_disk) else {
        return Err(Error::Stopped(
            "before the device was free; nothing was trained",
        ));
    };
    let var = |(name, tensor): (String, Tensor)| Ok((name, Var::from_tensor(&tensor)?));
    let weights = saved.tensors(Tuned::weights_file(setting.lora.is_some()))?;
    let projection = if setting.agreement.most.hidden_weight > 0.0 {
        let tensors = saved.tensors(PROJECTION_FILE)?;
        let tensor = tensors.get(HiddenProjection::NAME);
        tensor.map(HiddenProjection::from_tensor).transpose()?
    } else {
        None
    };
    let lora = setting.lora.as_ref();
    let tuned = Tuned {
        adapter: lora.map(|lora| adapter_config(lora, setting.files)),
        files: setting.files,
        parameters: weights.into_iter().map(var).collect::<Result<_>>()?,
        projection: projection.as_ref(),
    };
    if let (Some(carried), Some(watch)) = (carried, &host.watch) {
        host.keeper
            .save(carried.into_files(), watch, &host.frames)?;
    }
    finish(setting, &tuned, &host.keeper, &host.loss)
}
