//! Provides the training loop: step by step, frames to update, with the checks in between.

use std::{collections::BTreeMap, path::Path, time::Instant};

use candle_core::{Tensor, Var};
use distill_model::Gradients;

use super::{
    example::Example,
    guard::{self, GradientWatch},
    source::FrameSource,
    step::{Objective, StepLoss},
};
use crate::{
    Error, Result,
    align::FrameReader,
    client::Received,
    config::TrainConfig,
    loss::{HiddenProjection, LossConfig, LossError},
    optimizer::{Optimizer, Schedule, UpdateSettings, clip_factor},
    run::{Memory, MetricsLog, Progress, RunDirectory, StepMetrics, write_atomically},
    shutdown::Shutdown,
};

/// What a run trains, with what, and where it leaves its traces.
pub(super) struct Trainer<'a> {
    pub config: &'a TrainConfig,
    pub run_directory: &'a RunDirectory,
    pub parameters: Vec<(String, Var)>,
    pub objective: Objective<'a>,
    pub projection: Option<&'a HiddenProjection>,
    pub reader: FrameReader<'a>,
    pub total_steps: usize,
}

impl Trainer<'_> {
    /// Steps until all are done or someone asks to stop. Gives the steps done and the last loss. A step whose frames all
    /// hold nothing for this student is done without an update.
    pub fn train(&self, mut frames: FrameSource, shutdown: &Shutdown) -> Result<(usize, StepLoss)> {
        let config = self.config;
        let updates = config.update_settings();
        let mut optimizer = Optimizer::new(self.parameters.clone(), updates.optimizer)?;
        let schedule = updates.schedule(config.warmup_steps, self.total_steps);
        let mut projection = ProjectionUpdates::new(config, self.projection, self.total_steps)?;
        let mut watch = GradientWatch::new(&self.parameters);
        let mut metrics = MetricsLog::create(&self.run_directory.join("metrics.jsonl"))?;
        let mut progress = Progress::start(self.total_steps as u64, "step");
        let mut loss = StepLoss::default();
        let mut warnings = Warnings::default();

        let mut steps = 0;
        for step in 0..self.total_steps {
            let waiting = Instant::now();
            let Some(batch) = frames.next(config.batch_size * config.grad_accumulation)? else {
                break;
            };
            let wait_seconds = waiting.elapsed().as_secs_f64();
            let start = Instant::now();
            let learning_rate = schedule.learning_rate(step);

            let examples = self.examples(&batch)?;
            warnings.look_at_examples(&examples, &batch);
            steps = step + 1;
            if examples.is_empty() {
                progress.advance(|| "no frame for this student".to_owned());
                continue;
            }
            let mut gradients = Gradients::new();
            let settings = config.loss.at(step, self.total_steps);
            loss = self.forward_backward(step + 1, &examples, &batch, &settings, &mut gradients)?;
            self.check_finite(step + 1, &batch, &loss, &gradients)?;
            if optimizer.steps() == 0
                && let Some(path) = &config.first_step_grad_out
            {
                write_gradients(path, &gradients)?;
            }
            watch.check(step + 1, &self.parameters, &gradients)?;
            if let Some(projection) = &mut projection {
                projection.update(step, &mut gradients)?;
            }
            let grad_norm = gradients.global_norm()?;
            let clip = clip_factor(grad_norm, updates.max_grad_norm);
            optimizer.update(learning_rate, clip, |name| gradients.get(name))?;

            let seconds = start.elapsed().as_secs_f64();
            let line = StepMetrics {
                step: step + 1,
                epoch: frames.epoch(),
                lr: learning_rate,
                grad_norm,
                seconds,
                wait_seconds,
                ..step_metrics(&loss, seconds)
            };
            metrics.append(&line)?;
            warnings.look_at(&loss);
            progress.advance(|| {
                format!(
                    "loss {:.4}  {:.1} tokens/s",
                    line.loss, line.tokens_per_second
                )
            });
            if shutdown.is_requested() {
                break;
            }
        }
        progress.finish();
        Ok((steps, loss))
    }

    /// What the student can learn of these frames.
    fn examples(&self, batch: &[Received]) -> Result<Vec<Example>> {
        let examples = batch
            .iter()
            .filter_map(|received| self.reader.example(&received.frame).transpose());
        examples.collect()
    }

    fn forward_backward(
        &self,
        step: usize,
        examples: &[Example],
        batch: &[Received],
        settings: &LossConfig,
        gradients: &mut Gradients,
    ) -> Result<StepLoss> {
        let result =
            self.objective
                .forward_backward(examples, self.config.batch_size, settings, gradients);
        match result {
            Err(Error::Loss(LossError::NonFinite { what, .. })) => {
                Err(self.refuse(step, what.to_owned(), &[], batch)?)
            }
            other => other,
        }
    }

    /// Stops before the update when anything is NaN or infinite.
    fn check_finite(
        &self,
        step: usize,
        batch: &[Received],
        loss: &StepLoss,
        gradients: &Gradients,
    ) -> Result<()> {
        if let Some(part) = loss.not_finite() {
            return Err(self.refuse(step, part.to_owned(), &[], batch)?);
        }
        let names = guard::not_finite(gradients)?;
        match names.first() {
            None => Ok(()),
            Some(first) => {
                let what = format!("the gradient of {} parameters, first {first},", names.len());
                Err(self.refuse(step, what, &names, batch)?)
            }
        }
    }

    fn refuse(
        &self,
        step: usize,
        what: String,
        names: &[&str],
        batch: &[Received],
    ) -> Result<Error> {
        let dump = self
            .run_directory
            .dump_failed_step(step, &what, names, batch)?;
        Ok(Error::NotFinite { step, what, dump })
    }
}

/// Updates of the projection of hidden states, with a learning rate and a clipping of their own: its gradient must not
/// shorten the adapter's.
struct ProjectionUpdates {
    optimizer: Optimizer,
    schedule: Schedule,
    updates: UpdateSettings,
}

impl ProjectionUpdates {
    fn new(
        config: &TrainConfig,
        projection: Option<&HiddenProjection>,
        total_steps: usize,
    ) -> Result<Option<Self>> {
        let Some(projection) = projection else {
            return Ok(None);
        };
        let updates = UpdateSettings {
            lr: config.loss.hidden_lr,
            ..config.update_settings()
        };
        Ok(Some(Self {
            optimizer: Optimizer::new(vec![projection.parameter()], updates.optimizer)?,
            schedule: updates.schedule(config.warmup_steps, total_steps),
            updates,
        }))
    }

    /// Takes the projection's gradient out of `gradients` and uses it; there is none while its weight is 0.
    fn update(&mut self, step: usize, gradients: &mut Gradients) -> Result<()> {
        let Some(gradient) = gradients.remove(HiddenProjection::NAME) else {
            return Ok(());
        };
        let norm = gradient.sqr()?.sum_all()?.to_scalar::<f32>()?;
        let clip = clip_factor(f64::from(norm).sqrt(), self.updates.max_grad_norm);
        let learning_rate = self.schedule.learning_rate(step);
        self.optimizer
            .update(learning_rate, clip, |_| Some(&gradient))
    }
}

fn step_metrics(loss: &StepLoss, seconds: f64) -> StepMetrics {
    let memory = Memory::now();
    StepMetrics {
        loss: loss.total,
        ce: loss.ce,
        kl: loss.kl,
        ot: loss.ot,
        hidden_ot: loss.hidden,
        tokens: loss.tokens,
        targets: loss.targets,
        tokens_per_second: loss.tokens as f64 / seconds.max(1e-9),
        ot_iterations: loss.solver.map(|solver| solver.iterations),
        ot_marginal_error: loss.solver.map(|solver| solver.marginal_error),
        ot_converged: loss.solver.map(|solver| solver.converged),
        rss_bytes: memory.rss_bytes,
        peak_rss_bytes: memory.peak_rss_bytes,
        ..StepMetrics::default()
    }
}

fn write_gradients(path: &Path, gradients: &Gradients) -> Result<()> {
    let tensors: BTreeMap<&str, &Tensor> = gradients.iter().collect();
    write_atomically(path, &safetensors::serialize(tensors, None)?)
}

/// What is said once a run, not once a step.
#[derive(Default)]
struct Warnings {
    skipped: bool,
    uninformative: bool,
    not_converged: bool,
}

impl Warnings {
    fn look_at_examples(&mut self, examples: &[Example], batch: &[Received]) {
        let skipped = batch.len() - examples.len();
        if skipped > 0 && !std::mem::replace(&mut self.skipped, true) {
            tracing::warn!(
                "{skipped} of {} frames hold nothing for this student (no target of its own within its positions, or no \
                 token that it knows); they are skipped, and so are others like them",
                batch.len()
            );
        }
    }

    fn look_at(&mut self, loss: &StepLoss) {
        let Some(solver) = loss.solver else { return };
        if solver.uninformative && !std::mem::replace(&mut self.uninformative, true) {
            tracing::warn!(
                "transport is within 1 % of 1 - 1/M, the value of a plan that knows nothing: it does not teach; lower \
                 --epsilon or --temperature, or use another --similarity"
            );
        }
        if !solver.converged && !std::mem::replace(&mut self.not_converged, true) {
            tracing::warn!(
                "transport did not converge in {} iterations (marginal error {:.1e}); raise --max-iterations or \
                 --epsilon",
                solver.iterations,
                solver.marginal_error
            );
        }
    }
}
