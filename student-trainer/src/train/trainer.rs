//! Provides the training loop: step by step, frames to update, with the checks, evaluations and checkpoints in between.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use candle_core::{Tensor, Var};
use distill_model::{Gradients, Squares};
use distill_program::units::{Bytes, Digits};

use super::{
    before,
    evaluation::{self, Evaluation},
    example::Example,
    guard::GradientWatch,
    keeper::Keeper,
    loss_scale::{LossScaler, Verdict},
    source::{FrameSource, Next},
    step::{Objective, StepLoss},
    together::{self, Counts},
    tuned::Tuned,
    turn::{Handover, Turn},
    updates::Updates,
    warnings::Warnings,
};
use crate::{
    Error, Result,
    align::FrameReader,
    checkpoint::Content,
    client::Received,
    config::{ShuffleTeacher, TrainConfig},
    files,
    loss::{HiddenProjection, LossConfig, LossError},
    ranks::Ranks,
    run::{Progress, RunDirectory, StepMetrics, progress},
    shutdown::Shutdown,
};

/// For how long a run that is asked for the device goes on with frames that are here already. Whoever comes back for them has to
/// load the student again.
const LEAVING: Duration = Duration::from_secs(10);

/// A rank whose frames do not come asks the others so often whether all stop.
const BETWEEN_WORDS: Duration = Duration::from_secs(1);

/// What a run trains, with what, and where it leaves its traces.
pub(super) struct Trainer<'a> {
    pub config: &'a TrainConfig,
    /// Those who compute the steps together.
    pub ranks: &'a dyn Ranks,
    pub run_directory: &'a RunDirectory,
    pub tuned: Tuned<'a>,
    pub objective: Objective<'a>,
    pub updates: Updates,
    pub reader: &'a FrameReader<'a>,
    /// The frame that the next example is given something of, in a control.
    pub before: Option<Received>,
    pub evaluation: Option<&'a Evaluation<'a>>,
    pub frames: FrameSource,
    pub watch: GradientWatch,
    pub keeper: Keeper,
    pub scaler: LossScaler,
    pub warnings: Warnings,
    /// Of the last step.
    pub loss: StepLoss,
    /// On the device, where the teacher shares it.
    pub turn: Option<&'a Turn>,
    /// What it took to get the device, until a line of metrics tells it.
    pub handover: Option<Handover>,
}

/// Frames of one optimiser step.
pub(super) fn frames_a_step(config: &TrainConfig) -> usize {
    config.batch_size * config.grad_accumulation
}

/// Why the steps ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// All are done, nothing gets better any more, or someone asked to stop.
    Over,
    /// The device is asked for; the run goes on when it is back.
    GiveBack,
}

impl<'a> Trainer<'a> {
    /// Steps until the run is over, and then the last step is in a checkpoint; or until the device is asked for and no frames are here
    /// any more, or for long enough; but for one step at least, or two trainers that share it might never get on.
    pub fn train(&mut self, shutdown: &Shutdown) -> Result<Pause> {
        let (done, total) = (self.keeper.state.step, self.keeper.state.total_steps);
        // The first rank says how far all are.
        let mut progress = self.ranks.is_first().then(|| {
            let mut progress = progress(total, "step");
            progress.skip(done as u64);
            progress
        });
        let first = done;
        together::check_start(self.ranks, self.config, &self.keeper.state)?;
        self.check_same()?;
        loop {
            let over_since = self.turn.and_then(Turn::over_since);
            let is_over = over_since.is_some_and(|at| at.elapsed() > LEAVING);
            if is_over && self.keeper.state.step > first && !self.has_all_steps() {
                return Ok(Pause::GiveBack);
            }
            // A run that was stopped between a step and its evaluation catches up here.
            let found_a_better_one = match self.evaluate(progress.as_ref(), shutdown) {
                Ok(found) => found,
                Err(error) => return Err(self.saved_before(error)),
            };
            if self.keeper.is_due() || found_a_better_one {
                self.check_same()?;
                self.save()?;
            }
            let waiting = Instant::now();
            if self.has_all_steps() || self.stops(shutdown)? {
                break;
            }
            let batch = match self.frames.next(frames_a_step(self.config), self.turn) {
                Ok(Next::Frames(batch)) => batch,
                Ok(Next::Stopped) => break,
                Ok(Next::GiveBack) => return Ok(Pause::GiveBack),
                // Frames that are not what the teacher said they were are no reason to go on from here.
                Err(error) if self.ranks.is_alone() && !matches!(error, Error::Stream(_)) => {
                    return Err(self.saved_before(error));
                }
                Err(error) => return Err(error),
            };
            let wait_seconds = waiting.elapsed().as_secs_f64();
            let line = self.step(&batch, wait_seconds)?;
            let Some(progress) = &mut progress else {
                continue;
            };
            match line {
                Some(line) => progress.advance(|| {
                    let (loss, rate) = (line.loss, Digits(line.tokens_per_second));
                    let memory = Bytes(line.rss_bytes);
                    format!("loss {loss:.4}  {rate} tokens/s  {memory}")
                }),
                None => progress.advance(|| "no update".to_owned()),
            }
        }
        drop(progress);
        if self.keeper.is_unsaved() {
            self.check_same()?;
            self.save()?;
        }
        Ok(Pause::Over)
    }

    /// Whether the run stops here, for somebody asked one of its processes to. All stop after the same step: nobody begins one before
    /// all have its frames.
    fn stops(&mut self, shutdown: &Shutdown) -> Result<bool> {
        if self.ranks.is_alone() {
            return Ok(shutdown.is_requested());
        }
        loop {
            let is_there = self
                .frames
                .wait_for(frames_a_step(self.config), BETWEEN_WORDS)?;
            let has_frames = is_there == Some(true);
            let is_asked = is_there == Some(false) || shutdown.is_requested();
            if !self.ranks.all(!is_asked) {
                // Whoever was not asked ends as the others do.
                shutdown.request();
                return Ok(true);
            }
            if self.ranks.all(has_frames) {
                return Ok(false);
            }
        }
    }

    /// Refuses to go on, or to save, where the ranks have come to train different students.
    fn check_same(&self) -> Result<()> {
        together::check_same(self.ranks, self.keeper.state.step, &self.trained())
    }

    /// Everything that is trained, by name.
    fn trained(&self) -> Vec<(String, Var)> {
        let projections = self.tuned.projections.iter();
        let projections = projections.map(HiddenProjection::parameter);
        let parameters = self.tuned.parameters.iter().cloned();
        parameters.chain(projections).collect()
    }

    /// Whether there is nothing left to do.
    pub fn is_done(&self) -> bool {
        self.has_all_steps() && !self.is_evaluation_due()
    }

    fn has_all_steps(&self) -> bool {
        self.keeper.has_all_steps(self.config)
    }

    /// Whether the student as it is now has to be looked at, and was not yet.
    fn is_evaluation_due(&self) -> bool {
        let state = &self.keeper.state;
        let (step, every) = (state.step, self.config.eval_steps);
        let due = step == state.total_steps || (every > 0 && step.is_multiple_of(every));
        due && step != state.evals.evaluated && !self.config.eval_data.is_empty()
    }

    /// One step: loss, gradients, update, a line of metrics. `None` where no frame holds anything for this student, or the
    /// gradients overflowed by the loss's scale: such a step is done without an update.
    fn step(&mut self, batch: &[Received], wait_seconds: f64) -> Result<Option<StepMetrics>> {
        let start = Instant::now();
        let step = self.keeper.state.step;
        let gradients = match self.gradients(batch) {
            Ok(gradients) => gradients,
            Err(error) => return Err(self.saved_without(error)),
        };
        let Some((gradients, squares)) = gradients else {
            self.keeper.state.step += 1;
            return Ok(None);
        };
        let applied = self.updates.apply(step, &gradients, squares)?;
        self.keeper.state.step += 1;

        let seconds = start.elapsed().as_secs_f64();
        let handover = self.handover.take();
        let line = StepMetrics {
            release_seconds: handover.and_then(|handover| handover.release_seconds),
            acquire_seconds: handover.map(|handover| handover.acquire_seconds),
            load_seconds: handover.map(|handover| handover.load_seconds),
            step: step + 1,
            epoch: self.frames.epoch(),
            lr: applied.learning_rate,
            grad_norm: applied.grad_norm,
            seconds,
            wait_seconds,
            ..self.loss.metrics(seconds)
        };
        self.keeper.step(&line)?;
        self.warnings.look_at(&self.loss);
        Ok(Some(line))
    }

    /// The gradients of a step over all ranks, with their sums of squares, checked: nothing that is trained has changed yet. `None` as
    /// in [`step`](Self::step).
    fn gradients(&mut self, batch: &[Received]) -> Result<Option<(Gradients, Squares)>> {
        let (step, total) = (self.keeper.state.step, self.keeper.state.total_steps);
        let examples = self.examples(batch)?;
        let counts = Counts {
            frames: batch.len(),
            examples: examples.len(),
            targets: StepLoss::none_of(&examples).targets,
        };
        let counts = counts.of_all(self.ranks);
        // The reader leaves out the first one and says so.
        let left_out = usize::from(self.config.shuffle_teacher != ShuffleTeacher::None);
        self.warnings
            .look_at_examples(counts.examples, counts.frames, left_out);
        if counts.examples == 0 {
            return Ok(None);
        }
        let mut gradients = Gradients::new();
        let settings = self.config.loss.at(step, total);
        self.loss =
            self.forward_backward(counts.targets, &examples, batch, &settings, &mut gradients)?;
        if !self.ranks.is_alone() {
            let trained = self.trained();
            let loss = std::mem::take(&mut self.loss);
            (self.loss, gradients) = together::add_up(self.ranks, &trained, &loss, gradients)?;
        }
        let squares = gradients.squares()?;
        if self.is_overflow(&squares) {
            return Ok(None);
        }
        self.check_finite(batch, &squares)?;
        self.dump_first(&gradients)?;
        self.watch
            .check(step + 1, &self.tuned.parameters, &gradients, &squares)?;
        Ok(Some((gradients, squares)))
    }

    /// Evaluates where that is due; the first rank does, and tells the others. True where the student was never better.
    fn evaluate(&mut self, progress: Option<&Progress>, shutdown: &Shutdown) -> Result<bool> {
        if !self.is_evaluation_due() {
            return Ok(false);
        }
        let is_best = self.measure(progress, shutdown)?;
        let evals = &mut self.keeper.state.evals;
        Ok(together::hear_first(self.ranks, evals, is_best))
    }

    fn measure(&mut self, progress: Option<&Progress>, shutdown: &Shutdown) -> Result<bool> {
        let Some(evaluation) = self.evaluation.filter(|_| !shutdown.is_requested()) else {
            return Ok(false);
        };
        let Some(report) = evaluation.run(self.objective.decoder, shutdown)? else {
            return Ok(false);
        };
        let metrics = self.keeper.record(&report, self.frames.epoch())?;
        if let Some(progress) = progress {
            progress.note(&evaluation::say(&metrics));
        }
        Ok(metrics.best)
    }

    /// As [`saved_before`](Self::saved_before), of a step that came to no update. Of a control the sequence is gone by that the next
    /// one is given something of; and of several ranks the others may be elsewhere.
    fn saved_without(&mut self, error: Error) -> Error {
        if !self.ranks.is_alone() || self.config.shuffle_teacher != ShuffleTeacher::None {
            return error;
        }
        self.frames.step_back();
        self.saved_before(error)
    }

    /// Writes a checkpoint before an error ends the run: what was trained is not lost with it.
    fn saved_before(&mut self, error: Error) -> Error {
        if self.keeper.is_unsaved() {
            match self.save() {
                Ok(()) => tracing::info!(
                    "step {} is in a checkpoint, and --resume goes on with it",
                    self.keeper.state.step
                ),
                Err(lost) => tracing::error!("no checkpoint could be written either: {lost}"),
            }
        }
        error
    }

    fn save(&mut self) -> Result<()> {
        let files = if self.keeper.is_unsaved() && self.ranks.is_first() {
            self.files()?
        } else {
            Vec::new()
        };
        self.keeper.save(files, &self.watch, &self.frames)
    }

    /// What a checkpoint of this moment holds.
    fn files(&self) -> Result<Vec<(&'static str, Content)>> {
        let mut files = self.tuned.checkpoint_files()?;
        files.extend(self.updates.files()?);
        if let Some(before) = &self.before {
            files.push(before::file(before)?);
        }
        Ok(files)
    }

    /// Hands the run to the process whose turn is the next.
    pub fn hand_over(&mut self, turn: &Turn) -> Result<()> {
        let files = self.files()?;
        let state = self.keeper.moment(&self.watch, &self.frames)?;
        turn.hand_over(state, &self.warnings, &files)
    }

    /// What the student can learn of these frames.
    fn examples(&mut self, batch: &[Received]) -> Result<Vec<Example>> {
        let examples = batch
            .iter()
            .filter_map(|received| self.reader.example(&received.frame).transpose());
        let examples = examples.collect();
        if let Some(index) = self.reader.given_next() {
            let last = batch.iter().rfind(|received| received.frame.index == index);
            self.before = last.cloned().or(self.before.take());
        }
        examples
    }

    fn forward_backward(
        &self,
        targets: usize,
        examples: &[Example],
        batch: &[Received],
        settings: &LossConfig,
        gradients: &mut Gradients,
    ) -> Result<StepLoss> {
        let scale = self.scaler.scale();
        let result = self
            .objective
            .forward_backward_of(targets, examples, settings, scale, gradients);
        match result {
            // All have to hear of it before it ends the step.
            Err(Error::Loss(LossError::NonFinite { .. })) if !self.ranks.is_alone() => {
                Ok(StepLoss {
                    total: f64::NAN,
                    ..StepLoss::none_of(examples)
                })
            }
            Err(Error::Loss(LossError::NonFinite { what, .. })) => {
                Err(self.refuse(what.to_owned(), &[], batch)?)
            }
            other => other,
        }
    }

    /// Whether the gradients overflowed because of the loss's scale, which is lower from now on.
    fn is_overflow(&mut self, squares: &Squares) -> bool {
        let scale = self.scaler.scale();
        if scale == 1.0 || self.loss.not_finite().is_some() {
            return false;
        }
        let verdict = self.scaler.settle(squares.is_finite());
        self.keeper.state.loss_scale = self.scaler.state();
        if verdict == Verdict::Skip {
            tracing::info!(
                "step {}: a gradient overflowed at a loss scale of {scale}; it is left out, and the scale is {} now",
                self.keeper.state.step + 1,
                self.scaler.scale()
            );
        }
        verdict == Verdict::Skip
    }

    /// Stops before the update when anything is NaN or infinite.
    fn check_finite(&self, batch: &[Received], squares: &Squares) -> Result<()> {
        if let Some(part) = self.loss.not_finite() {
            return Err(self.refuse(part.to_owned(), &[], batch)?);
        }
        let names = squares.not_finite();
        match names.first() {
            None => Ok(()),
            Some(first) => {
                let what = format!("the gradient of {} parameters, first {first},", names.len());
                Err(self.refuse(what, &names, batch)?)
            }
        }
    }

    fn refuse(&self, what: String, names: &[&str], batch: &[Received]) -> Result<Error> {
        let step = self.keeper.state.step + 1;
        let rank = self.ranks.rank();
        let dump = self
            .run_directory
            .dump_failed_step(step, rank, &what, names, batch);
        // The first says so, which ends all: not before every one has left its frames.
        self.ranks.meet();
        let dump = dump?;
        Ok(Error::NotFinite { step, what, dump })
    }

    /// Writes the gradients before the first update, where someone wants to compare them.
    fn dump_first(&self, gradients: &Gradients) -> Result<()> {
        match &self.config.first_step_grad_out {
            Some(path) if self.updates.done() == 0 && self.ranks.is_first() => {
                let tensors: BTreeMap<&str, &Tensor> = gradients.iter().collect();
                files::write_tensors(path, tensors)
            }
            _ => Ok(()),
        }
    }
}
