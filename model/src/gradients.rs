//! Provides the gradients of a model's parameters, by name, with what an optimiser asks of them.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use crate::{Result, Squares};

/// How the names of an adapter's matrices end.
const LORA_A: &str = "lora_A.weight";
const LORA_B: &str = "lora_B.weight";

/// Accumulated f32 gradients. Iteration is in name order, so runs are reproducible.
#[derive(Debug, Default)]
pub struct Gradients {
    by_name: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// No gradients yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `gradient` to what `name` has.
    ///
    /// # Errors
    /// When an earlier gradient of the same name had another shape.
    pub fn add(&mut self, name: &str, gradient: &Tensor) -> Result<()> {
        // Detached, because a gradient may hold the whole graph of the pass that made it.
        let gradient = gradient.detach().to_dtype(DType::F32)?;
        let sum = match self.by_name.get(name) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.by_name.insert(name.to_owned(), sum);
        Ok(())
    }

    /// Adds what candle's backward pass found for `parameters`; those it did not reach stay missing.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_from(&mut self, store: &GradStore, parameters: &[(String, Var)]) -> Result<()> {
        for (name, var) in parameters {
            if let Some(gradient) = store.get(var) {
                self.add(name, gradient)?;
            }
        }
        Ok(())
    }

    /// The gradient of one parameter.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name)
    }

    /// Names and gradients, in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.by_name
            .iter()
            .map(|(name, gradient)| (name.as_str(), gradient))
    }

    /// Number of parameters that have a gradient.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether no parameter has a gradient.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The sum of squares of each.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn squares(&self) -> Result<Squares> {
        Squares::of(self.iter())
    }

    /// Multiplies every gradient, to clip or to average.
    ///
    /// # Errors
    /// When a device fails.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for gradient in self.by_name.values_mut() {
            *gradient = (&*gradient * factor)?;
        }
        Ok(())
    }

    /// Which of `parameters` the backward pass did not reach, or reached with nothing but zeros; `squares` are these gradients'.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn check(&self, parameters: &[(String, Var)], squares: &Squares) -> Result<GradientCheck> {
        let mut check = GradientCheck::default();
        for (name, _) in parameters {
            if self.get(name).is_none() {
                check.missing.push(name.clone());
            } else if squares.is_zero(name) {
                check.zero.push(name.clone());
            }
        }
        // Looked for only where something is zero: that reads the card.
        if !check.zero.is_empty() {
            let silent = silent_adapters(parameters)?;
            let zero = std::mem::take(&mut check.zero).into_iter();
            (check.expected_zero, check.zero) =
                zero.partition(|name| silent.contains(name.as_str()));
        }
        Ok(check)
    }
}

/// What [`Gradients::check`] found. candle cuts gradients silently, and an optimiser that skips
/// missing ones would train a part of the model without a word.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct GradientCheck {
    /// Parameters without a gradient.
    pub missing: Vec<String>,
    /// Parameters whose gradient is zero throughout.
    pub zero: Vec<String>,
    /// LoRA A matrices whose gradient is zero because their B still is: so it must be at step 0.
    pub expected_zero: Vec<String>,
}

impl GradientCheck {
    /// Whether every parameter receives a gradient that can teach it something.
    pub fn passed(&self) -> bool {
        self.missing.is_empty() && self.zero.is_empty()
    }
}

/// Names of the LoRA A matrices whose B is zero: the product B A passes no gradient on to A.
fn silent_adapters(parameters: &[(String, Var)]) -> Result<BTreeSet<String>> {
    let adapters = || parameters.iter().filter(|(name, _)| name.ends_with(LORA_B));
    let squares = Squares::of(adapters().map(|(name, var)| (name.as_str(), var.as_tensor())))?;
    let silent = adapters().filter(|(name, _)| squares.is_zero(name));
    let prefix = |name: &'_ String| {
        name.strip_suffix(LORA_B)
            .map(|prefix| format!("{prefix}{LORA_A}"))
    };
    Ok(silent.filter_map(|(name, _)| prefix(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
    }

    fn var(values: &[f32]) -> Var {
        Var::from_tensor(&tensor(values)).unwrap()
    }

    #[test]
    fn gradients_add_up_and_scale() {
        let mut gradients = Gradients::new();
        gradients.add("b", &tensor(&[3.0])).unwrap();
        gradients.add("a", &tensor(&[1.0, 1.0])).unwrap();
        gradients.add("a", &tensor(&[3.0, -1.0])).unwrap();
        assert_eq!(gradients.squares().unwrap().norm(), 5.0);
        gradients.scale(0.5).unwrap();
        let halves: Vec<_> = gradients
            .iter()
            .map(|(name, g)| (name.to_owned(), g.to_vec1::<f32>().unwrap()))
            .collect();
        let expected = [
            ("a".to_owned(), vec![2.0, 0.0]),
            ("b".to_owned(), vec![1.5]),
        ];
        assert_eq!(halves, expected);
    }

    #[test]
    fn one_nan_or_infinity_is_found() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut gradients = Gradients::new();
            gradients.add("a", &tensor(&[1.0, 3e38])).unwrap();
            assert!(gradients.squares().unwrap().is_finite());
            gradients.add("b", &tensor(&[0.0, bad])).unwrap();
            assert!(!gradients.squares().unwrap().is_finite());
        }
    }

    #[test]
    fn a_zero_gradient_is_expected_only_where_b_is_zero() {
        let parameters = [
            ("x.lora_A.weight".to_owned(), var(&[1.0])),
            ("x.lora_B.weight".to_owned(), var(&[0.0])),
            ("y.lora_A.weight".to_owned(), var(&[1.0])),
            ("y.lora_B.weight".to_owned(), var(&[2.0])),
            ("z.weight".to_owned(), var(&[2.0])),
        ];
        let mut gradients = Gradients::new();
        for (name, value) in [
            ("x.lora_A", 0.0),
            ("x.lora_B", 1.0),
            ("y.lora_A", 0.0),
            ("y.lora_B", 1.0),
        ] {
            gradients
                .add(&format!("{name}.weight"), &tensor(&[value]))
                .unwrap();
        }
        let squares = gradients.squares().unwrap();
        let check = gradients.check(&parameters, &squares).unwrap();
        let expected = GradientCheck {
            missing: vec!["z.weight".into()],
            zero: vec!["y.lora_A.weight".into()],
            expected_zero: vec!["x.lora_A.weight".into()],
        };
        assert_eq!(check, expected);
        assert!(!check.passed());
    }
}
