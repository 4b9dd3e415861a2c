//! Provides the weight of an RMSNorm.
//!
//! From Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019):
//! `y = w * x / sqrt(mean(x^2) + eps)`.

use candle_core::{Tensor, Var};

use crate::layer::load_parameter;
use crate::{Gradients, LoadOptions, Parameter, Result, Weights};

/// One RMSNorm and its weight [d].
#[derive(Debug, Clone)]
pub struct RmsNorm {
    name: String,
    weight: Parameter,
    eps: f64,
}

impl RmsNorm {
    /// Reads `{prefix}.weight` of `size` elements.
    ///
    /// # Errors
    /// When the weight is missing or has another shape.
    pub fn load(
        weights: &Weights,
        prefix: &str,
        size: usize,
        eps: f64,
        options: &LoadOptions,
    ) -> Result<Self> {
        let name = format!("{prefix}.weight");
        let weight = load_parameter(weights, &name, &[size], options)?;
        Ok(Self { name, weight, eps })
    }

    /// A norm from its parts.
    #[cfg(test)]
    pub(crate) fn new(name: &str, weight: Parameter, eps: f64) -> Self {
        let name = name.to_owned();
        Self { name, weight, eps }
    }

    /// Memory taken by the weight, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// The weight.
    pub(crate) fn weight(&self) -> &Tensor {
        self.weight.tensor()
    }

    /// Added to the mean square.
    pub(crate) fn eps(&self) -> f32 {
        self.eps as f32
    }

    /// The weight's variable, where it is trained.
    pub(crate) fn var(&self) -> Option<&Var> {
        self.weight.var()
    }

    /// Adds to the weight's gradient.
    pub(crate) fn add_gradient(&self, gradient: &Tensor, gradients: &mut Gradients) -> Result<()> {
        gradients.add(&self.name, gradient)
    }

    /// The weight, where it is trained.
    pub(crate) fn parameters(&self) -> Option<(String, Var)> {
        let var = self.weight.var()?;
        Some((self.name.clone(), var.clone()))
    }
}
