//! Provides the linear layer of every projection: a frozen or trainable weight, an optional bias, an optional adapter.

mod load;
#[cfg(test)]
mod tests;

use crate::{Error, LoadOptions, Lora, Nf4Matrix, PackedMatrix, Parameter, Result, Weights};
use candle_core::{Tensor, Var};
pub use load::dequantized;
use std::sync::Arc;

/// A linear layer's matrix [out, in].
#[derive(Clone, Debug)]
pub enum Weight {
    /// Frozen, in the model's type.
    Dense(Tensor),
    /// Frozen, in four bits; shared with the ops that will run backward.
    Nf4(Arc<Nf4Matrix>),
    /// Frozen, in the blocks of a GGUF file.
    Packed(PackedMatrix),
    /// Trained, f32.
    Trainable(Var),
}

impl Weight {
    /// [out, in].
    fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(weight) => Ok(weight.dims2()?),
            Self::Nf4(weight) => Ok((weight.rows(), weight.columns())),
            Self::Packed(weight) => Ok((weight.rows(), weight.columns())),
            Self::Trainable(weight) => Ok(weight.dims2()?),
        }
    }

    /// Memory taken, in bytes.
    fn bytes(&self) -> usize {
        let dense = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        match self {
            Self::Dense(weight) => dense(weight),
            Self::Nf4(weight) => weight.bytes(),
            Self::Packed(weight) => weight.bytes(),
            Self::Trainable(weight) => dense(weight),
        }
    }
}

/// y = x W^T + bias + scale (x A^T) B^T.
#[derive(Clone, Debug)]
pub struct Linear {
    prefix: String,
    in_features: usize,
    out_features: usize,
    weight: Weight,
    bias: Option<Parameter>,
    lora: Option<Lora>,
}

impl Linear {
    /// Reads the layer `prefix` (such as `model.layers.0.self_attn.q_proj`): `{prefix}.weight`, `{prefix}.bias` where there is
    /// one, and an adapter when `options.lora` names the layer.
    ///
    /// # Errors
    /// Names the tensor and the file, or the option that does not fit the checkpoint.
    pub fn load(weights: &Weights, prefix: &str, options: &LoadOptions) -> Result<Self> {
        let weight = load::weight(weights, &format!("{prefix}.weight"), options)?;
        let bias_name = format!("{prefix}.bias");
        let bias = weights
            .contains(&bias_name)
            .then(|| Parameter::load(weights, &bias_name, options))
            .transpose()?;
        let mut linear = Self::new(prefix, weight, bias)?;
        if let Some(config) = &options.lora
            && config.adapts(prefix)?
        {
            let (rows, columns) = (linear.out_features, linear.in_features);
            linear.lora = Some(Lora::new(prefix, columns, rows, config, &options.device)?);
        }
        Ok(linear)
    }

    /// A layer from its parts; `prefix` names its parameters.
    ///
    /// # Shapes
    /// weight `[out, in]`, bias `[out]`
    ///
    /// # Errors
    /// [`Error::Shape`] when the bias does not fit the weight.
    pub fn new(prefix: &str, weight: Weight, bias: Option<Parameter>) -> Result<Self> {
        let (out_features, in_features) = weight.dims()?;
        if let Some(bias) = &bias
            && bias.tensor().dims() != [out_features]
        {
            return Err(Error::shape(
                format!("{prefix}.bias"),
                &[out_features],
                bias.tensor().dims(),
            ));
        }
        Ok(Self {
            prefix: prefix.to_owned(),
            in_features,
            out_features,
            weight,
            bias,
            lora: None,
        })
    }

    /// The layer with this adapter in place of any other.
    ///
    /// # Errors
    /// [`Error::Shape`] when A or B does not fit.
    pub fn with_lora(mut self, lora: Lora) -> Result<Self> {
        let rank = lora.a.dims().first().copied().unwrap_or_default();
        for (name, var, expected) in [
            ("lora_A", &lora.a, [rank, self.in_features]),
            ("lora_B", &lora.b, [self.out_features, rank]),
        ] {
            if var.dims() != expected {
                let what = format!("{}.{name}", self.prefix);
                return Err(Error::shape(what, &expected, var.dims()));
            }
        }
        self.lora = Some(lora);
        Ok(self)
    }

    /// The trainable parameters with their names: PEFT's for adapters, the checkpoint's for full-parameter training.
    pub fn parameters(&self) -> Vec<(String, Var)> {
        let own = [self.trained_weight(), self.trained_bias()];
        let own = own.into_iter().flatten();
        let mut parameters: Vec<_> = own.map(|(name, var)| (name, var.clone())).collect();
        if let Some(lora) = &self.lora {
            parameters.extend(lora.parameters(&self.prefix));
        }
        parameters
    }

    /// Columns of the weight.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Rows of the weight.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Memory taken by weight and bias, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, Parameter::bytes)
    }

    /// Names its parameters.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The weight's variable with its name, where it is trained.
    pub(crate) fn trained_weight(&self) -> Option<(String, &Var)> {
        match &self.weight {
            Weight::Trainable(var) => Some((format!("{}.weight", self.prefix), var)),
            _ => None,
        }
    }

    /// The bias's variable with its name, where it is trained.
    pub(crate) fn trained_bias(&self) -> Option<(String, &Var)> {
        let var = self.bias.as_ref().and_then(Parameter::var)?;
        Some((format!("{}.bias", self.prefix), var))
    }

    /// The weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The bias, when the layer has one.
    pub fn bias(&self) -> Option<&Parameter> {
        self.bias.as_ref()
    }

    /// The adapter, when the layer has one.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }
}
