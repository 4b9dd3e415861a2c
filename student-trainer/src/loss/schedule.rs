//! Provides how the loss changes over a run: weights that ramp up or drift, temperatures that are annealed.

use serde::{Deserialize, Serialize};

use super::config::{LossConfig, positive, setting};
use super::error::Result;

/// Changes of the loss over a run; what is not set stays as it is.
///
/// With x from 0 at the first step to 1 at the last, a weight w with an end e is `w + x (e - w)`, a temperature t is
/// `t (e / t)^x`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossSchedule {
    /// Steps over which the weight of transport rises from 0: a weak student's plans pair what does not belong
    /// together.
    pub ot_warmup_steps: usize,
    /// Weight of CE at the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ce_weight_end: Option<f64>,
    /// Weight of KL at the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_weight_end: Option<f64>,
    /// Weight of reverse KL at the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverse_kl_weight_end: Option<f64>,
    /// Weight of JSD at the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jsd_weight_end: Option<f64>,
    /// Weight of transport at the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ot_weight_end: Option<f64>,
    /// Temperature of the similarity's softmax at the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_end: Option<f64>,
    /// epsilon at the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon_end: Option<f64>,
}

impl LossSchedule {
    pub(super) fn validate(&self) -> Result<()> {
        for (key, weight) in [
            ("ce_weight_end", self.ce_weight_end),
            ("kl_weight_end", self.kl_weight_end),
            ("reverse_kl_weight_end", self.reverse_kl_weight_end),
            ("jsd_weight_end", self.jsd_weight_end),
            ("ot_weight_end", self.ot_weight_end),
        ] {
            if weight.is_some_and(|weight| !((weight as f32).is_finite() && weight >= 0.0)) {
                return Err(setting(key, "is not a number of at least 0".into()));
            }
        }
        positive("temperature_end", self.temperature_end.unwrap_or(1.0))?;
        positive("epsilon_end", self.epsilon_end.unwrap_or(1.0))
    }
}

impl LossConfig {
    /// The settings of step `step`, from 0, of `total_steps`.
    pub fn at(&self, step: usize, total_steps: usize) -> Self {
        let schedule = &self.schedule;
        let x = step as f64 / total_steps.saturating_sub(1).max(1) as f64;
        let linear = |from: f64, to: Option<f64>| to.map_or(from, |to| from + x * (to - from));
        let geometric =
            |from: f64, to: Option<f64>| to.map_or(from, |to| from * (to / from).powf(x));
        let ramp = match schedule.ot_warmup_steps {
            0 => 1.0,
            steps => ((step + 1) as f64 / steps as f64).min(1.0),
        };
        let mut now = self.clone();
        now.ce_weight = linear(self.ce_weight, schedule.ce_weight_end);
        now.kl_weight = linear(self.kl_weight, schedule.kl_weight_end);
        now.reverse_kl_weight = linear(self.reverse_kl_weight, schedule.reverse_kl_weight_end);
        now.jsd_weight = linear(self.jsd_weight, schedule.jsd_weight_end);
        now.ot_weight = ramp * linear(self.ot_weight, schedule.ot_weight_end);
        let align = &mut now.align;
        align.temperature = geometric(align.temperature, schedule.temperature_end);
        if schedule.epsilon_end.is_some() {
            align.epsilon = geometric(align.epsilon(), schedule.epsilon_end);
            align.lambda = None;
        }
        now
    }

    /// The settings with every part that has a weight at some step: what the teacher must feed.
    pub fn at_its_most(&self, total_steps: usize) -> Self {
        let last = self.at(total_steps.saturating_sub(1), total_steps);
        Self {
            ce_weight: self.ce_weight.max(last.ce_weight),
            kl_weight: self.kl_weight.max(last.kl_weight),
            reverse_kl_weight: self.reverse_kl_weight.max(last.reverse_kl_weight),
            jsd_weight: self.jsd_weight.max(last.jsd_weight),
            ot_weight: self.ot_weight.max(last.ot_weight),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_drift_ramp_and_anneal() {
        let mut config = LossConfig {
            ot_weight: 0.5,
            schedule: LossSchedule {
                ot_warmup_steps: 4,
                kl_weight_end: Some(0.0),
                epsilon_end: Some(0.025),
                ..LossSchedule::default()
            },
            ..LossConfig::default()
        };
        config.validate().unwrap();
        let at = |step| config.at(step, 11);
        assert_eq!(at(0).ot_weight, 0.25 * config.ot_weight);
        assert_eq!(at(3).ot_weight, config.ot_weight);
        assert_eq!(
            (at(0).kl_weight, at(5).kl_weight, at(10).kl_weight),
            (1.0, 0.5, 0.0)
        );
        assert!((at(5).align.epsilon() - 0.05).abs() < 1e-12);
        assert_eq!(at(7).ce_weight, config.ce_weight);
        // One step is its own first and last.
        assert_eq!(config.at(0, 1).kl_weight, 1.0);

        config.kl_weight = 0.0;
        config.schedule.kl_weight_end = Some(0.3);
        assert_eq!(config.at_its_most(11).kl_weight, 0.3);
        config.schedule.kl_weight_end = Some(-1.0);
        assert!(config.validate().is_err());
    }
}
