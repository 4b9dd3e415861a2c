//! Provides the checks between gradients and update: everything finite, and nothing severed.

use std::collections::BTreeSet;

use candle_core::{DType, Tensor, Var};
use distill_model::Gradients;

use crate::{Error, Result};

/// Steps within which every parameter must have had a gradient other than zero. One is not enough: with B = 0, as LoRA
/// starts, A's gradient is zero, and a first sequence of two tokens tells q and k nothing.
const STEPS_TO_SHOW: usize = 3;
/// Names that a message lists.
const NAMES_MAX: usize = 4;

/// Watches the first steps for parameters that the loss does not reach. candle cuts gradients silently, and a cut in a
/// residual block gives wrong gradients rather than missing ones, so a run must not start on hope.
pub struct GradientWatch {
    silent: BTreeSet<String>,
}

impl GradientWatch {
    /// Watches every parameter.
    pub fn new(parameters: &[(String, Var)]) -> Self {
        Self {
            silent: parameters.iter().map(|(name, _)| name.clone()).collect(),
        }
    }

    /// Goes on with those that had shown nothing before a checkpoint.
    pub fn resume(silent: Vec<String>) -> Self {
        Self {
            silent: silent.into_iter().collect(),
        }
    }

    /// Those that have shown nothing yet.
    pub fn silent(&self) -> Vec<String> {
        self.silent.iter().cloned().collect()
    }

    /// Looks at the gradients of step `step`, from 1.
    ///
    /// # Errors
    /// A parameter without a gradient, at once; one with nothing but zeros, after a few steps.
    pub fn check(
        &mut self,
        step: usize,
        parameters: &[(String, Var)],
        gradients: &Gradients,
    ) -> Result<()> {
        if self.silent.is_empty() {
            return Ok(());
        }
        let check = gradients.check(parameters)?;
        if !check.missing.is_empty() {
            return Err(severed(step, "no", check.missing.iter()));
        }
        let zero: BTreeSet<&String> = check.zero.iter().chain(&check.expected_zero).collect();
        self.silent.retain(|name| zero.contains(name));
        if step >= STEPS_TO_SHOW && !self.silent.is_empty() {
            return Err(severed(step, "only a zero", self.silent.iter()));
        }
        Ok(())
    }
}

fn severed<'a>(
    step: usize,
    what: &'static str,
    names: impl ExactSizeIterator<Item = &'a String>,
) -> Error {
    let more = names.len().saturating_sub(NAMES_MAX);
    let mut list: Vec<String> = names.take(NAMES_MAX).cloned().collect();
    if more > 0 {
        list.push(format!("and {more} more"));
    }
    Error::Gradient {
        step,
        names: list.join(", "),
        what,
    }
}

/// Names of the gradients that hold NaN or infinity.
///
/// # Errors
/// A tensor error.
pub fn not_finite(gradients: &Gradients) -> Result<Vec<&str>> {
    // One sum over everything first: the usual answer is none.
    if gradients.is_finite()? {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for (name, gradient) in gradients.iter() {
        if !is_finite(gradient)? {
            names.push(name);
        }
    }
    Ok(names)
}

fn is_finite(tensor: &Tensor) -> Result<bool> {
    // Squares of f32 do not overflow f64.
    let squares = tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?;
    Ok(squares.to_scalar::<f64>()?.is_finite())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(value: f32) -> Tensor {
        Tensor::full(value, 2, &Device::Cpu).unwrap()
    }

    fn parameters() -> Vec<(String, Var)> {
        let var = |value| Var::from_tensor(&tensor(value)).unwrap();
        vec![
            ("x.lora_A.weight".into(), var(1.0)),
            ("x.lora_B.weight".into(), var(0.0)),
        ]
    }

    fn gradients(a: Option<f32>, b: f32) -> Gradients {
        let mut gradients = Gradients::new();
        if let Some(a) = a {
            gradients.add("x.lora_A.weight", &tensor(a)).unwrap();
        }
        gradients.add("x.lora_B.weight", &tensor(b)).unwrap();
        gradients
    }

    #[test]
    fn a_missing_gradient_fails_at_once_by_name() {
        let parameters = parameters();
        let mut watch = GradientWatch::new(&parameters);
        let error = watch
            .check(1, &parameters, &gradients(None, 1.0))
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("x.lora_A.weight got no gradient"),
            "{error}"
        );
    }

    #[test]
    fn a_zero_may_stand_at_the_start_but_not_for_long() {
        let parameters = parameters();
        let mut fine = GradientWatch::new(&parameters);
        for (step, a) in [(1, 0.0), (2, 0.5), (3, 0.0), (9, 0.0)] {
            fine.check(step, &parameters, &gradients(Some(a), 1.0))
                .unwrap();
        }
        let mut severed = GradientWatch::new(&parameters);
        for step in 1..STEPS_TO_SHOW {
            severed
                .check(step, &parameters, &gradients(Some(0.0), 1.0))
                .unwrap();
        }
        let error = severed
            .check(STEPS_TO_SHOW, &parameters, &gradients(Some(0.0), 1.0))
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("x.lora_A.weight got only a zero"),
            "{error}"
        );
    }

    #[test]
    fn one_nan_is_named() {
        assert!(not_finite(&gradients(Some(3e38), 1.0)).unwrap().is_empty());
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(
                not_finite(&gradients(Some(1.0), bad)).unwrap(),
                ["x.lora_B.weight"]
            );
        }
    }
}
