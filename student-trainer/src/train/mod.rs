/*! The training run: agree with the teacher, then step by step frames -> loss -> gradients -> update.

```text
 FrameSource ──> FrameReader ──> Objective::forward_backward ──> GradientWatch ──> Updates ──> Keeper: log, checkpoints
   (passes)        Examples        decoder, head_loss              NaN? severed?     AdamW        └──> adapter/ or model/
      ^                                                                                           ^
      └── cursor <── checkpoint, with --resume                Evaluation: held-out text ──────────┘
```

A teacher in swap mode lends the device: then the run goes through several processes (`turns`), each of which (`turn`) goes on
from what the one before has handed over, as from a checkpoint. Several processes that train together, a device each, are `ranks`:
what they have to agree on is `together`.
*/

mod agreement;
mod before;
mod evaluation;
mod example;
mod fit;
mod guard;
mod keeper;
mod lora;
mod loss_scale;
mod memory;
mod overrides;
mod passes;
mod plans;
mod result;
mod samples;
mod setting;
mod setup;
mod source;
mod start;
mod states;
mod step;
mod together;
mod trainer;
mod tuned;
mod turn;
mod turns;
mod updates;
mod warnings;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use distill_program::{inherited::Inherited, monitor};
use tracing::subscriber::{self, NoSubscriber};

use crate::{
    Error, Result,
    align::FrameReader,
    checkpoint::Checkpoints,
    client::{self, Vocabularies, fetch_basis},
    config::{ShuffleTeacher, TrainConfig, Tune},
    loss::Projection,
    ranks::{Alone, Ranks},
    run::{RunDirectory, TeacherRecord},
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};
pub(crate) use agreement::look_for_teacher;
use agreement::{agree, connect, identity, pair_tokens_max};
use evaluation::Evaluation;
pub use example::Example;
pub(crate) use example::evenly;
use guard::GradientWatch;
use keeper::Keeper;
pub use loss_scale::{LossScaleState, LossScaler, Verdict};
pub use passes::Passes;
pub(crate) use plans::{PlanMap, Plans};
pub(crate) use result::refuse_harmed;
pub(crate) use samples::{ANSWER_TOKENS_MAX, PROMPT_TOKENS_MAX, Sample};
use setting::{Host, Setting};
use setup::{adapter_config, checkpointing, frame_source, head_geometry, passes, projections};
use start::Start;
pub use step::{Objective, StepLoss};
use trainer::{Pause, Trainer, frames_a_step};
use tuned::Tuned;
use turn::{Grant, HANDED_OVER, Handover};
pub use turn::{Turn, is_turn};
pub(crate) use turns::PROGRAM;
use updates::Updates;

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

/// How a command to train ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// Steps were done.
    Trained(Summary),
    /// The run was finished before; nothing was done.
    FinishedBefore,
    /// Other processes do the run: what this one's exit status is.
    Elsewhere(u8),
}

/// Trains as `config` says. Blocks the thread; makes its own runtime for the network, so call it outside of one.
///
/// # Errors
/// Whatever stops the run; what was saved before stays.
pub fn run(config: &TrainConfig, shutdown: &Shutdown) -> Result<Ending> {
    run_on(&Alone, config, shutdown)
}

/// As [`run`], together with other processes, each of which calls this with the same settings. The first of them writes everything.
///
/// # Errors
/// As [`run`]; fewer passes in a step than ranks; ranks that do not train the same student.
pub fn run_on(ranks: &dyn Ranks, config: &TrainConfig, shutdown: &Shutdown) -> Result<Ending> {
    config.validate()?;
    together::check_config(config, ranks)?;
    let run_directory = ranks.after_first(|| {
        if ranks.is_first() {
            RunDirectory::create(&config.out)
        } else {
            Ok(RunDirectory::enter(&config.out))
        }
    })?;
    train(config, ranks, &run_directory, None, shutdown)
}

/// Goes on with the run in `config.out`, from its newest checkpoint or, without one, from its start. On one CPU in f32 the
/// result is bitwise that of a run that was never interrupted. Of a finished run, a result that was harmed is written anew.
///
/// # Errors
/// As [`run`]; a setting that would make it another run; another teacher, corpus or student than before.
pub fn resume(config: &TrainConfig, shutdown: &Shutdown) -> Result<Ending> {
    resume_on(&Alone, config, shutdown)
}

/// As [`resume`], with any number of processes, whatever their number was before.
///
/// # Errors
/// As [`resume`] and [`run_on`].
pub fn resume_on(ranks: &dyn Ranks, config: &TrainConfig, shutdown: &Shutdown) -> Result<Ending> {
    config.validate()?;
    together::check_config(config, ranks)?;
    let run_directory = ranks.after_first(|| {
        if ranks.is_first() {
            RunDirectory::reopen(&config.out)
        } else {
            Ok(RunDirectory::enter(&config.out))
        }
    })?;
    overrides::check(&run_directory.read_config()?, config)?;
    if let Some(summary) = run_directory.summary()?
        && result::is_whole(&run_directory, config, &summary)?
    {
        return Ok(Ending::FinishedBefore);
    }
    train(config, ranks, &run_directory, None, shutdown)
}

/// Takes a turn of the run in `out`, which another process leads.
///
/// # Errors
/// As [`resume`].
pub fn take_turn(out: &Path, turn: &Turn, shutdown: &Shutdown) -> Result<Ending> {
    let run_directory = RunDirectory::enter(out);
    let config = TrainConfig {
        // The directory may have been moved since it was written.
        out: out.to_owned(),
        ..run_directory.read_config()?
    };
    train(&config, &Alone, &run_directory, Some(turn), shutdown)
}

/// Agrees with the teacher, and then computes; where the teacher shares its device, in processes that take turns there.
fn train(
    config: &TrainConfig,
    ranks: &dyn Ranks,
    run_directory: &RunDirectory,
    turn: Option<&Turn>,
    shutdown: &Shutdown,
) -> Result<Ending> {
    let writes = ranks.is_first();
    if let (Some(address), None, true) = (config.metrics_addr, turn, writes) {
        let refused = |error| Error::Config(format!("metrics_addr: {error}"));
        monitor::check(address).map_err(refused)?;
    }
    // What there is to say of a run is said by the process that leads it.
    let silence = || turn.map(|_| subscriber::set_default(NoSubscriber::default()));
    let silent = silence();
    let checkpoints =
        ranks.after_first(|| Checkpoints::open(run_directory.path(), config.keep_last))?;
    let start = Start::find(config, &checkpoints, turn)?;
    // Where it has to be fetched, once.
    let mut files = ranks.after_first(|| StudentFiles::find(&config.student, shutdown))?;
    files
        .tokenizer
        .set_chat_template_kwargs(&config.chat_template_kwargs);
    drop(silent);
    let runtime = client::runtime()?;
    let kept_before = |error| start.kept_before(error, config, &files, &checkpoints);
    let teacher = runtime
        .block_on(connect(config, shutdown))
        .map_err(kept_before)?;
    let silent = silence();
    let agreement = runtime
        .block_on(agree(config, &files, teacher))
        .map_err(kept_before)?;
    let (teacher, info) = (&agreement.teacher, &agreement.info);
    together::check_teacher(info, ranks)?;
    // Whoever leads is never on the device, and a turn not before it is granted.
    let place = if info.lends_device() {
        None
    } else {
        Some(Place::choose_among(&config.device, config.dtype, ranks)?)
    };
    let reader = FrameReader::new(
        agreement.vocabularies,
        teacher,
        info,
        &files,
        pair_tokens_max(config, info),
    );
    let reader = runtime.block_on(reader).map_err(kept_before)?;
    let reader = reader.shuffled(config.shuffle_teacher);
    let frames = (frames_a_step(config) as u64, info.sequence_count);
    let state = start.state(identity(info, &files)?, agreement.total_steps, frames)?;
    let lora = match config.tune {
        Tune::Lora => Some(lora::choose(config)?),
        Tune::Full => None,
    };
    let leading = if info.lends_device() && turn.is_none() {
        let path = run_directory.path();
        Some(Inherited::on_disk(path).map_err(Error::io("create a file in", path))?)
    } else {
        None
    };
    let answers = match (&leading, turn) {
        (Some(answers), _) => Some(
            answers
                .open()
                .map_err(Error::io("open", run_directory.path()))?,
        ),
        (None, turn) => turn.map(Turn::answers).transpose()?,
    };
    let handle = runtime.handle();
    let evaluation = if writes {
        let runtime = handle.clone();
        Evaluation::open(config, &files, &agreement, answers, runtime, shutdown)?
    } else {
        None
    };
    drop(silent);
    let basis = if agreement.most.needs_state() && leading.is_none() {
        runtime.block_on(fetch_basis(teacher, info))?
    } else {
        None
    };
    // Whoever leads does nothing that is worth watching.
    if let Some(address) = config.metrics_addr.filter(|_| leading.is_none() && writes) {
        match monitor::serve(address, || true) {
            Ok(at) => tracing::info!("metrics at http://{at}/metrics"),
            // It was free when the run began, which goes on without.
            Err(error) => tracing::warn!("metrics_addr: {error}"),
        }
    }
    if turn.is_none() && writes {
        // From here on there is a run: nothing was written before.
        run_directory.begin(config)?;
        TeacherRecord::of(info).write(run_directory.path())?;
    }
    if let Some(answers) = leading {
        let teacher = teacher.clone();
        // The processes that compute have these themselves.
        drop((evaluation, reader, start));
        drop(files);
        distill_program::memory::give_back();
        return turns::lead(config, run_directory, teacher, &answers, handle, shutdown);
    }
    let setting = Setting {
        config,
        ranks,
        run_directory,
        files: &files,
        agreement: &agreement,
        lora,
        basis,
        turn,
        shutdown,
    };
    let keeper = if writes {
        Keeper::open(config, run_directory, checkpoints, state)?
    } else {
        Keeper::follow(config, state)
    };
    let mut host = Host {
        frames: frame_source(&setting, handle, &keeper),
        reader,
        evaluation,
        keeper,
    };
    let (place, grant) = match (place, turn) {
        (None, Some(turn)) => host.arrive(config, turn, &start, handle, shutdown)?,
        (Some(place), _) => (place, None),
        (None, None) => (Place::choose(&config.device, config.dtype)?, None),
    };
    let place = place.within(config.memory_budget_bytes);
    if !start.is_handed && writes {
        memory::plan_ahead(config, run_directory, &files, info, &place)?;
    }
    compute(&setting, host, start, &place, grant).map_err(|error| place.explained(error))
}

/// Loads the student, goes on from what was saved, and trains until the run is over or the turn is.
fn compute(
    setting: &Setting<'_>,
    mut host: Host<'_>,
    start: Start,
    place: &Place,
    grant: Option<Grant>,
) -> Result<Ending> {
    let Setting {
        config,
        ranks,
        run_directory,
        files,
        agreement,
        lora,
        turn,
        ..
    } = setting;
    let decoder = match lora {
        Some(lora) => files.load(config.quantize, place, Some(lora.clone()))?,
        None => files.load_trainable(place)?,
    };
    if let (Some(lora), false) = (lora, start.is_handed) {
        lora::start(config, lora, &decoder)?;
    }
    // Rows of the student's head that are in the softmax.
    let vocab_size = match agreement.vocabularies {
        Vocabularies::Same => agreement.info.vocab_size,
        Vocabularies::Other => files.tokenizer.size(),
    };
    let geometry = head_geometry(&decoder, vocab_size, setting.basis.clone())?;
    let projections = projections(config, &agreement.most, &agreement.info, &decoder)?;
    let tuned = Tuned {
        adapter: lora.as_ref().map(|lora| adapter_config(lora, files)),
        files,
        parameters: decoder.parameters(),
        projections: &projections,
    };
    let (parameters, steps) = (tuned.parameters.clone(), agreement.total_steps);
    let mut updates = Updates::new(config, parameters, &projections, steps)?;
    let (mut watch, mut scaler) = (
        GradientWatch::new(&tuned.parameters),
        LossScaler::new(decoder.dtype()),
    );
    let mut before = None;
    if start.saved.is_none()
        && !projections.is_empty()
        && config.loss.align.projection == Projection::Fitted
    {
        // Every rank comes to the same.
        let report = if ranks.is_alone() {
            fit::fit(&projections, &decoder, &host.reader, &mut host.frames)?
        } else {
            let mut all = host.frames.another_of_all();
            fit::fit(&projections, &decoder, &host.reader, &mut all)?
        };
        if let (Some(report), true) = (report, ranks.is_first()) {
            report.write(run_directory)?;
        }
    }
    if start.saved.is_none() && ranks.is_first() {
        samples::ask_before(setting, &decoder, &mut host)?;
    }
    if let Some(saved) = start.saved {
        tuned.restore(&*saved)?;
        updates.restore(&*saved)?;
        watch = GradientWatch::resume(saved.state().silent.clone());
        scaler.restore(saved.state().loss_scale);
        if config.shuffle_teacher != ShuffleTeacher::None && saved.state().step > 0 {
            before = Some(before::restore(&*saved, &host.reader)?);
        }
    }
    let mut trainer = Trainer {
        config,
        ranks: *ranks,
        run_directory,
        objective: Objective {
            decoder: &decoder,
            geometry: &geometry,
            trains_head: config.tune == Tune::Full,
            projections: &projections,
            checkpointing: checkpointing(config),
            passes: passes(config),
        },
        updates,
        reader: &host.reader,
        before,
        evaluation: host.evaluation.as_ref(),
        frames: host.frames,
        watch,
        scaler,
        keeper: host.keeper,
        warnings: start.warnings,
        loss: StepLoss::default(),
        turn: *turn,
        handover: grant.and_then(Handover::since),
        tuned,
    };
    match (trainer.train(setting.shutdown)?, turn) {
        (Pause::GiveBack, Some(turn)) => {
            trainer.hand_over(turn)?;
            Ok(Ending::Elsewhere(HANDED_OVER))
        }
        _ if ranks.is_first() => {
            let summary = result::finish(setting, &trainer)?;
            memory::compare(run_directory);
            Ok(Ending::Trained(summary))
        }
        _ => Ok(Ending::Trained(result::of_another(setting, &trainer))),
    }
}
