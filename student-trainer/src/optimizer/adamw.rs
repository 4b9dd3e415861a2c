//! Provides AdamW (Loshchilov & Hutter, "Decoupled weight decay regularization") with a state that can be saved.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};

use crate::{Error, Result};

/// What AdamW can be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices; biases and norms are left alone, as transformers' trainer does.
    pub weight_decay: f64,
}

/// First and second moment of one parameter, f32.
#[derive(Clone, Debug)]
struct Moments {
    first: Tensor,
    second: Tensor,
}

/// AdamW over named f32 parameters, updated in name order.
///
/// With step t from 1, per element: `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
/// `p = p (1 - lr wd) - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
pub struct AdamW {
    config: AdamWConfig,
    parameters: BTreeMap<String, Var>,
    moments: BTreeMap<String, Moments>,
    step: usize,
}

/// Name of the tensor that holds the step count in a saved state.
const STEP_KEY: &str = "step";

impl AdamW {
    /// Starts with moments of zero.
    ///
    /// # Errors
    /// A parameter that is not f32: in half precision small updates vanish.
    pub fn new(parameters: Vec<(String, Var)>, config: AdamWConfig) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, parameter) in &parameters {
            if parameter.dtype() != DType::F32 {
                return Err(Error::Config(format!(
                    "parameter {name} is {:?}; the optimiser needs f32",
                    parameter.dtype()
                )));
            }
            let zeros = parameter.zeros_like()?;
            let second = zeros.clone();
            moments.insert(
                name.clone(),
                Moments {
                    first: zeros,
                    second,
                },
            );
        }
        Ok(Self {
            config,
            parameters: parameters.into_iter().collect(),
            moments,
            step: 0,
        })
    }

    /// Updates done so far.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// One update. `gradient` gives the gradient of a parameter by name, times `scale` (clipping) when used.
    ///
    /// # Errors
    /// A parameter without a gradient (skipping it silently would leave it untrained), or a tensor error.
    pub fn update<'a>(
        &mut self,
        learning_rate: f64,
        scale: f64,
        gradient: impl Fn(&str) -> Option<&'a Tensor>,
    ) -> Result<()> {
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = self.config;
        let t = self.step as f64 + 1.0;
        let correction1 = 1.0 - beta1.powf(t);
        let correction2 = (1.0 - beta2.powf(t)).sqrt();
        for (name, parameter) in &self.parameters {
            let missing = || Error::Gradient {
                step: self.step + 1,
                names: name.clone(),
                what: "no",
            };
            let gradient = (gradient(name).ok_or_else(missing)? * scale)?;
            let Some(moments) = self.moments.get_mut(name) else {
                continue;
            };
            moments.first = ((&moments.first * beta1)? + (&gradient * (1.0 - beta1))?)?;
            moments.second = ((&moments.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let root = ((moments.second.sqrt()? / correction2)? + eps)?;
            let change = ((&moments.first / root)? * (learning_rate / correction1))?;
            let decay = if parameter.dims().len() > 1 {
                weight_decay
            } else {
                0.0
            };
            let decayed = (parameter.as_tensor() * (1.0 - learning_rate * decay))?;
            parameter.set(&(decayed - change)?)?;
        }
        self.step += 1;
        Ok(())
    }

    /// The whole state as named tensors: `NAME.exp_avg`, `NAME.exp_avg_sq` and the step count.
    ///
    /// # Errors
    /// A tensor error.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, moments) in &self.moments {
            state.insert(format!("{name}.exp_avg"), moments.first.clone());
            state.insert(format!("{name}.exp_avg_sq"), moments.second.clone());
        }
        let device = &candle_core::Device::Cpu;
        state.insert(
            STEP_KEY.to_owned(),
            Tensor::new(&[self.step as i64], device)?,
        );
        Ok(state)
    }

    /// Goes on from a state that `state` gave.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape, by name; nothing is changed then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let get = |key: &str| {
            state.get(key).ok_or_else(|| {
                Error::Config(format!(
                    "the optimiser state has no `{key}`; it belongs to another run"
                ))
            })
        };
        let mut moments = BTreeMap::new();
        for (name, parameter) in &self.parameters {
            let load = |suffix: &str| -> Result<Tensor> {
                let tensor = get(&format!("{name}.{suffix}"))?;
                if tensor.dims() == parameter.dims() {
                    return Ok(tensor.to_device(parameter.device())?.to_dtype(DType::F32)?);
                }
                Err(Error::Config(format!(
                    "the optimiser state of {name} has shape {:?}, the parameter {:?}",
                    tensor.dims(),
                    parameter.dims()
                )))
            };
            let (first, second) = (load("exp_avg")?, load("exp_avg_sq")?);
            moments.insert(name.clone(), Moments { first, second });
        }
        let step = get(STEP_KEY)?.flatten_all()?.to_vec1::<i64>()?;
        self.step = step.first().map_or(0, |&step| step.max(0) as usize);
        self.moments = moments;
        Ok(())
    }
}

#[cfg(test)]
#[path = "adamw_tests.rs"]
mod tests;
