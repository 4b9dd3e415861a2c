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
    /// Decoupled weight decay.
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
            let decayed = (parameter.as_tensor() * (1.0 - learning_rate * weight_decay))?;
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
mod tests {
    use candle_core::Device;

    use super::*;

    const CONFIG: AdamWConfig = AdamWConfig {
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-6,
        weight_decay: 0.1,
    };

    fn var(values: &[f32]) -> Var {
        Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap()
    }

    fn gradient(step: usize, element: usize) -> f64 {
        ((3 * step + 7 * element) as f64 * 0.37).sin() * 10f64.powi(element as i32 - 1)
    }

    fn train(optimizer: &mut AdamW, steps: std::ops::Range<usize>, scale: f64) {
        for step in steps {
            let g: Vec<f32> = (0..3).map(|e| gradient(step, e) as f32).collect();
            let g = Tensor::new(g, &Device::Cpu).unwrap();
            let rate = 0.01 / (1.0 + step as f64);
            optimizer.update(rate, scale, |_| Some(&g)).unwrap();
        }
    }

    /// The formula element by element in f64.
    fn reference(start: [f64; 3], steps: usize, scale: f64) -> [f64; 3] {
        let (mut p, mut m, mut v) = (start, [0f64; 3], [0f64; 3]);
        for step in 0..steps {
            let rate = 0.01 / (1.0 + step as f64);
            let t = step as i32 + 1;
            for e in 0..3 {
                let g = gradient(step, e) * scale;
                m[e] = 0.9 * m[e] + 0.1 * g;
                v[e] = 0.99 * v[e] + 0.01 * g * g;
                let m_hat = m[e] / (1.0 - 0.9f64.powi(t));
                let v_hat = v[e] / (1.0 - 0.99f64.powi(t));
                p[e] -= rate * (m_hat / (v_hat.sqrt() + 1e-6) + 0.1 * p[e]);
            }
        }
        p
    }

    #[test]
    fn agrees_with_the_formula_in_f64() {
        for scale in [1.0, 0.25] {
            let parameter = var(&[1.0, -2.0, 0.5]);
            let mut optimizer = AdamW::new(vec![("p".into(), parameter.clone())], CONFIG).unwrap();
            train(&mut optimizer, 0..30, scale);
            let expected = reference([1.0, -2.0, 0.5], 30, scale);
            for (got, want) in parameter.to_vec1::<f32>().unwrap().iter().zip(expected) {
                // f32 rounding of 30 updates of about 0.01.
                assert!((f64::from(*got) - want).abs() < 2e-6, "{got} {want}");
            }
        }
    }

    #[test]
    fn agrees_with_torch() {
        // torch 2.15: AdamW([1, -2, 0.5], betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1), these gradients and rates.
        let torch = [0.987_328_8, -1.998_093_7, 0.510_083_14];
        let parameter = var(&[1.0, -2.0, 0.5]);
        let mut optimizer = AdamW::new(vec![("p".into(), parameter.clone())], CONFIG).unwrap();
        train(&mut optimizer, 0..30, 1.0);
        for (got, want) in parameter.to_vec1::<f32>().unwrap().iter().zip(torch) {
            // Both round in f32, in another order.
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn a_saved_state_continues_bitwise() {
        let whole = var(&[1.0, -2.0, 0.5]);
        let mut optimizer = AdamW::new(vec![("p".into(), whole.clone())], CONFIG).unwrap();
        train(&mut optimizer, 0..9, 1.0);

        let half = var(&[1.0, -2.0, 0.5]);
        let mut first = AdamW::new(vec![("p".into(), half.clone())], CONFIG).unwrap();
        train(&mut first, 0..4, 1.0);
        let mut second = AdamW::new(vec![("p".into(), half.clone())], CONFIG).unwrap();
        second.load_state(&first.state().unwrap()).unwrap();
        assert_eq!(second.steps(), 4);
        train(&mut second, 4..9, 1.0);
        assert_eq!(
            half.to_vec1::<f32>().unwrap(),
            whole.to_vec1::<f32>().unwrap()
        );
    }

    #[test]
    fn a_missing_gradient_is_an_error_not_a_skip() {
        let mut optimizer = AdamW::new(vec![("some.lora_A".into(), var(&[1.0]))], CONFIG).unwrap();
        let error = optimizer.update(0.1, 1.0, |_| None).unwrap_err();
        assert!(error.to_string().contains("some.lora_A"), "{error}");
    }

    #[test]
    fn a_foreign_state_is_refused_by_name() {
        let mut optimizer = AdamW::new(vec![("p".into(), var(&[1.0]))], CONFIG).unwrap();
        let error = optimizer.load_state(&BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("p.exp_avg"), "{error}");
        let other = AdamW::new(vec![("p".into(), var(&[1.0, 2.0]))], CONFIG).unwrap();
        let error = optimizer.load_state(&other.state().unwrap()).unwrap_err();
        assert!(error.to_string().contains("shape"), "{error}");
    }
}
