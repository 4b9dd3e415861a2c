//! Provides the optimiser: AdamW over named parameters in their groups, with a state that can be saved.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::{
    AdamWConfig, EIGHT_BIT_SIZE_MIN, LearningRateRatios,
    adamw::Step,
    blockwise::BLOCK,
    card::{CardUpdates, Queue},
    group::{decays, in_8_bits},
    moments::{Moments, entry},
};
use crate::{Error, Result};

/// How the moments of AdamW are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// In f32: 8 bytes a parameter.
    #[default]
    AdamW,
    /// In 8 bits with a scale for every 256 values, as bitsandbytes' `AdamW8bit` does: 2 bytes a parameter. Parameters of
    /// less than 4096 elements, and embeddings, keep theirs in f32.
    AdamW8bit,
}

impl OptimizerKind {
    /// Memory of the moments of one parameter that is no embedding.
    pub fn state_bytes(self, elements: u64) -> u64 {
        match self {
            Self::AdamW8bit if elements >= EIGHT_BIT_SIZE_MIN as u64 => {
                2 * (elements + 4 * elements.div_ceil(BLOCK as u64))
            }
            Self::AdamW | Self::AdamW8bit => 8 * elements,
        }
    }
}

/// Everything the optimiser can be told, beside the learning rate of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// How the moments are kept.
    pub kind: OptimizerKind,
    /// The formula's numbers.
    pub adamw: AdamWConfig,
    /// Learning rates of groups.
    pub ratios: LearningRateRatios,
}

/// AdamW over named f32 parameters, updated in name order.
pub struct Optimizer {
    config: OptimizerConfig,
    slots: BTreeMap<String, Slot>,
    card: CardUpdates,
    step: usize,
}

/// One parameter with its moments.
struct Slot {
    parameter: Var,
    moments: Moments,
    learning_rate_ratio: f64,
    weight_decay: f64,
}

/// Name of the tensor that holds the step count in a saved state.
const STEP_KEY: &str = "step";

impl Optimizer {
    /// Starts with moments of zero.
    ///
    /// # Errors
    /// A parameter that is not f32: in half precision small updates vanish.
    pub fn new(parameters: Vec<(String, Var)>, config: OptimizerConfig) -> Result<Self> {
        let slot = |(name, parameter): (String, Var)| {
            if parameter.dtype() != DType::F32 {
                return Err(Error::Config(format!(
                    "parameter {name} is {:?}; the optimiser needs f32",
                    parameter.dtype()
                )));
            }
            let weight_decay = match decays(&parameter) {
                true => config.adamw.weight_decay,
                false => 0.0,
            };
            let slot = Slot {
                moments: Moments::new(&parameter, in_8_bits(config.kind, &name, &parameter))?,
                learning_rate_ratio: config.ratios.of(&name),
                weight_decay,
                parameter,
            };
            Ok((name, slot))
        };
        Ok(Self {
            config,
            slots: parameters.into_iter().map(slot).collect::<Result<_>>()?,
            card: CardUpdates::new(),
            step: 0,
        })
    }

    /// What it was told.
    pub fn config(&self) -> OptimizerConfig {
        self.config
    }

    /// Updates done so far.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// One update. `gradient` gives the gradient of a parameter by name, times `scale` (clipping) when used.
    ///
    /// # Errors
    /// A parameter without a gradient (skipping it silently would leave it untrained; nothing is updated then), or a tensor
    /// error.
    pub fn update<'a>(
        &mut self,
        learning_rate: f64,
        scale: f64,
        gradient: impl Fn(&str) -> Option<&'a Tensor>,
    ) -> Result<()> {
        let t = self.step + 1;
        let gradients = self.slots.keys().map(|name| {
            gradient(name).ok_or_else(|| Error::Gradient {
                step: t,
                names: name.clone(),
                what: "no",
            })
        });
        let gradients = gradients.collect::<Result<Vec<_>>>()?;
        let mut queued = Queue::default();
        for (slot, gradient) in self.slots.values_mut().zip(gradients) {
            let rate = learning_rate * slot.learning_rate_ratio;
            let step = Step::new(&self.config.adamw, t, rate, slot.weight_decay, scale);
            slot.moments
                .update(&slot.parameter, gradient, &step, &mut queued)?;
        }
        self.card.run(&queued)?;
        self.step = t;
        Ok(())
    }

    /// The whole state as named tensors: `NAME.exp_avg`, `NAME.exp_avg_sq` and the step count. Moments in 8 bits are codes
    /// (u8) with `NAME.exp_avg.absmax` and `NAME.exp_avg_sq.absmax` beside them.
    ///
    /// On a card the tensors are the moments themselves, which the next update changes.
    ///
    /// # Errors
    /// A tensor error.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, slot) in &self.slots {
            slot.moments.save(name, &slot.parameter, &mut state)?;
        }
        let step = Tensor::new(&[self.step as i64], &Device::Cpu)?;
        state.insert(STEP_KEY.to_owned(), step);
        Ok(state)
    }

    /// Goes on from a state that `state` gave.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape, by name; nothing is changed then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let loaded = self
            .slots
            .iter()
            .map(|(name, slot)| slot.moments.load(name, &slot.parameter, state));
        let loaded = loaded.collect::<Result<Vec<_>>>()?;
        let step = entry(state, STEP_KEY)?.flatten_all()?.to_vec1::<i64>()?;
        self.step = step.first().map_or(0, |&step| step.max(0) as usize);
        for (slot, moments) in self.slots.values_mut().zip(loaded) {
            slot.moments = moments;
        }
        Ok(())
    }

    /// Memory that the state takes.
    pub fn state_bytes(&self) -> u64 {
        let slots = self.slots.values();
        slots.map(|slot| slot.moments.bytes()).sum()
    }
}

#[cfg(test)]
#[path = "optimizer_tests.rs"]
mod tests;
