//! Provides the check between gradients and update that nothing is severed.

use std::collections::BTreeSet;

use candle_core::Var;
use distill_model::{Gradients, Squares};

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
        squares: &Squares,
    ) -> Result<()> {
        if self.silent.is_empty() {
            return Ok(());
        }
        let check = gradients.check(parameters, squares)?;
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

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

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

    fn check(watch: &mut GradientWatch, step: usize, gradients: &Gradients) -> Result<()> {
        let squares = gradients.squares()?;
        watch.check(step, &parameters(), gradients, &squares)
    }

    #[test]
    fn a_missing_gradient_fails_at_once_by_name() {
        let parameters = parameters();
        let mut watch = GradientWatch::new(&parameters);
        let error = check(&mut watch, 1, &gradients(None, 1.0)).unwrap_err();
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
            check(&mut fine, step, &gradients(Some(a), 1.0)).unwrap();
        }
        let mut severed = GradientWatch::new(&parameters);
        for step in 1..STEPS_TO_SHOW {
            check(&mut severed, step, &gradients(Some(0.0), 1.0)).unwrap();
        }
        let error = check(&mut severed, STEPS_TO_SHOW, &gradients(Some(0.0), 1.0)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("x.lora_A.weight got only a zero"),
            "{error}"
        );
    }
}
