//! Provides the updates of everything that is trained: clipping, schedule and AdamW, for the student and, apart, for the
//! projections of hidden states.

use candle_core::Var;
use distill_model::{Gradients, Squares};

use crate::{
    Result,
    checkpoint::{Content, OPTIMIZER_FILE, PROJECTION_OPTIMIZER_FILE, Saved},
    config::TrainConfig,
    loss::HiddenProjection,
    optimizer::{Optimizer, Schedule, UpdateSettings, clip_factor},
};

/// Both optimisers.
pub(super) struct Updates {
    settings: UpdateSettings,
    optimizer: Optimizer,
    schedule: Schedule,
    projection: Option<ProjectionUpdates>,
}

/// What an update did.
pub(super) struct Applied {
    pub learning_rate: f64,
    /// Norm of the student's whole gradient before clipping.
    pub grad_norm: f64,
}

impl Updates {
    /// Starts with moments of zero.
    pub fn new(
        config: &TrainConfig,
        parameters: Vec<(String, Var)>,
        projections: &[HiddenProjection],
        total_steps: usize,
    ) -> Result<Self> {
        let settings = config.update_settings();
        Ok(Self {
            optimizer: Optimizer::new(parameters, settings.optimizer)?,
            schedule: settings.schedule(config.warmup_steps, total_steps),
            projection: ProjectionUpdates::new(config, projections, total_steps)?,
            settings,
        })
    }

    /// Updates done so far; a step without an example does none.
    pub fn done(&self) -> usize {
        self.optimizer.steps()
    }

    /// Uses the gradients of step `step`, from 0, with their sums of squares.
    pub fn apply(
        &mut self,
        step: usize,
        gradients: &Gradients,
        mut squares: Squares,
    ) -> Result<Applied> {
        if let Some(projection) = &mut self.projection {
            projection.update(step, gradients, &mut squares)?;
        }
        let learning_rate = self.schedule.learning_rate(step);
        let grad_norm = squares.norm();
        let clip = clip_factor(grad_norm, self.settings.max_grad_norm);
        self.optimizer
            .update(learning_rate, clip, |name| gradients.get(name))?;
        Ok(Applied {
            learning_rate,
            grad_norm,
        })
    }

    /// What a checkpoint holds of them.
    pub fn files(&self) -> Result<Vec<(&'static str, Content)>> {
        let state = Content::Tensors(self.optimizer.state()?);
        let mut files = vec![(OPTIMIZER_FILE, state)];
        if let Some(projection) = &self.projection {
            let state = Content::Tensors(projection.optimizer.state()?);
            files.push((PROJECTION_OPTIMIZER_FILE, state));
        }
        Ok(files)
    }

    /// Goes on from a checkpoint, or from what was carried over.
    pub fn restore(&mut self, saved: &dyn Saved) -> Result<()> {
        self.optimizer.load_state(&saved.tensors(OPTIMIZER_FILE)?)?;
        match &mut self.projection {
            Some(projection) => projection
                .optimizer
                .load_state(&saved.tensors(PROJECTION_OPTIMIZER_FILE)?),
            None => Ok(()),
        }
    }
}

/// Updates of the projections of hidden states, with a learning rate and a clipping of their own: their gradient must not
/// shorten the adapter's.
struct ProjectionUpdates {
    names: Vec<String>,
    optimizer: Optimizer,
    schedule: Schedule,
    updates: UpdateSettings,
}

impl ProjectionUpdates {
    fn new(
        config: &TrainConfig,
        projections: &[HiddenProjection],
        total_steps: usize,
    ) -> Result<Option<Self>> {
        if projections.is_empty() {
            return Ok(None);
        }
        let parameters = projections
            .iter()
            .map(HiddenProjection::parameter)
            .collect();
        let updates = UpdateSettings {
            lr: config.loss.align.projection_lr(),
            ..config.update_settings()
        };
        Ok(Some(Self {
            names: projections.iter().map(HiddenProjection::name).collect(),
            optimizer: Optimizer::new(parameters, updates.optimizer)?,
            schedule: updates.schedule(config.warmup_steps, total_steps),
            updates,
        }))
    }

    /// Uses the projections' gradients, and takes them out of `squares`; there are none while their weight is 0.
    fn update(&mut self, step: usize, gradients: &Gradients, squares: &mut Squares) -> Result<()> {
        let norms = self.names.iter();
        let norms: Vec<f64> = norms.filter_map(|name| squares.remove_norm(name)).collect();
        if norms.is_empty() {
            return Ok(());
        }
        let norm = norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
        let clip = clip_factor(norm, self.updates.max_grad_norm);
        let learning_rate = self.schedule.learning_rate(step);
        self.optimizer
            .update(learning_rate, clip, |name| gradients.get(name))
    }
}
