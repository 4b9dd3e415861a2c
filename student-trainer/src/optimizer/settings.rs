//! Provides what every training can be told of its updates, with the check of each number.

use super::{AdamWConfig, LearningRateRatios, OptimizerConfig, Schedule};
use crate::{Error, Result, loss::is_positive};

/// Learning rate, clipping and AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateSettings {
    /// Peak learning rate.
    pub lr: f64,
    /// Share of all steps that is linear warm-up.
    pub warmup_ratio: f64,
    /// Share of the peak at which the cosine ends.
    pub lr_floor_ratio: f64,
    /// Largest norm of the whole gradient; 0 leaves it alone.
    pub max_grad_norm: f64,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
}

/// Collects [`UpdateSettings`] from the settings of the same names that every training has.
macro_rules! update_settings {
    ($config:expr, $ratios:expr) => {{
        let config = $config;
        $crate::optimizer::UpdateSettings {
            lr: config.lr,
            warmup_ratio: config.warmup_ratio,
            lr_floor_ratio: config.lr_floor_ratio,
            max_grad_norm: config.max_grad_norm,
            optimizer: $crate::optimizer::OptimizerConfig {
                kind: config.optimizer,
                adamw: $crate::optimizer::AdamWConfig {
                    beta1: config.beta1,
                    beta2: config.beta2,
                    eps: config.eps,
                    weight_decay: config.weight_decay,
                },
                ratios: $ratios,
            },
        }
    }};
}
pub(crate) use update_settings;

impl UpdateSettings {
    /// Checks every number.
    ///
    /// # Errors
    /// The first that is outside its meaning, by name, with what is allowed.
    pub fn validate(&self) -> Result<()> {
        let (share, decay) = (0.0..=1.0, 0.0..1.0);
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = self.optimizer.adamw;
        let LearningRateRatios { lora_b, embedding } = self.optimizer.ratios;
        let positive = is_positive;
        let checks = [
            (
                positive(self.lr),
                "lr: must be a positive number, also in f32",
            ),
            (
                share.contains(&self.warmup_ratio),
                "warmup_ratio: must lie in 0..=1",
            ),
            (
                share.contains(&self.lr_floor_ratio),
                "lr_floor_ratio: must lie in 0..=1",
            ),
            (
                weight_decay >= 0.0 && weight_decay.is_finite(),
                "weight_decay: must be a number of at least 0",
            ),
            (decay.contains(&beta1), "beta1: must lie in 0..1"),
            (decay.contains(&beta2), "beta2: must lie in 0..1"),
            (positive(eps), "eps: must be above 0, also in f32"),
            (
                self.max_grad_norm == 0.0 || positive(self.max_grad_norm),
                "max_grad_norm: must be at least 0",
            ),
            (
                positive(lora_b),
                "lora_b_lr_ratio: must be a positive number",
            ),
            (
                positive(embedding),
                "embedding_lr_ratio: must be a positive number",
            ),
        ];
        match checks.into_iter().find(|(fine, _)| !fine) {
            Some((_, message)) => Err(Error::Config(message.into())),
            None => Ok(()),
        }
    }

    /// The learning rate over `total_steps`; `warmup_steps`, where given, stand in for the ratio.
    pub fn schedule(&self, warmup_steps: Option<usize>, total_steps: usize) -> Schedule {
        let by_ratio = (self.warmup_ratio * total_steps as f64).ceil() as usize;
        let warmup_steps = warmup_steps.unwrap_or(by_ratio);
        Schedule::new(self.lr, self.lr_floor_ratio, warmup_steps, total_steps)
    }
}
