//! Provides the linear layer of every projection: a frozen or trainable weight, an optional bias, an optional adapter.

mod direct;
mod load;
#[cfg(test)]
mod tests;

use crate::{
    Error, LoadOptions, Lora, Nf4Matrix, PackedMatrix, Parameter, Result, Weights, frozen, tiles,
};
use candle_core::{DType, Tensor, Var};
pub(crate) use direct::{LowRank, is_plain};
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

    /// x [N, in] -> x W^T [N, out].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => frozen::dense_forward(x, weight),
            Self::Nf4(weight) => tiles::forward(x, weight),
            Self::Packed(weight) => weight.product(x),
            Self::Trainable(weight) => {
                let weight = weight.to_dtype(x.dtype())?;
                Ok(x.matmul(&weight.t()?)?)
            }
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

    /// Applies the layer. Gradients flow to x and to trainable parameters, never to a frozen weight.
    ///
    /// # Shapes
    /// x [.., in] -> [.., out], in x's type
    ///
    /// # Errors
    /// [`Error::Shape`] when x has another number of features.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (leading, features) = match x.dims() {
            [leading @ .., features] => (leading, *features),
            [] => (&[][..], 0),
        };
        if features != self.in_features || leading.is_empty() {
            let what = format!("the input of {}", self.prefix);
            return Err(Error::shape(
                what,
                &[leading, &[self.in_features]].concat(),
                x.dims(),
            ));
        }
        let rows: usize = leading.iter().product();
        let x = x.reshape((rows, features))?;
        let mut y = self.frozen_part(&x)?;
        if let Some(lora) = &self.lora {
            y = (y + lora.forward(&x)?)?;
        }
        Ok(y.reshape([leading, &[self.out_features]].concat())?)
    }

    /// x W^T + bias, rounded to x's type once, as PyTorch's fused product is on the CPU: Qwen2's key biases are large, and
    /// a product that is rounded before they are added loses what the sum could still hold.
    fn frozen_part(&self, x: &Tensor) -> Result<Tensor> {
        let Some(bias) = &self.bias else {
            return self.weight.forward(x);
        };
        let wide = if x.device().is_cpu() {
            DType::F32
        } else {
            x.dtype()
        };
        let y = match &self.weight {
            Weight::Dense(weight) => {
                frozen::dense_forward(&x.to_dtype(wide)?, &weight.to_dtype(wide)?)?
            }
            other => other.forward(&x.to_dtype(wide)?)?,
        };
        let y = y.broadcast_add(&bias.tensor().to_dtype(wide)?)?;
        Ok(y.to_dtype(x.dtype())?)
    }

    /// The trainable parameters with their names: PEFT's for adapters, the checkpoint's for full-parameter training.
    pub fn parameters(&self) -> Vec<(String, Var)> {
        let mut parameters = Vec::new();
        if let Weight::Trainable(var) = &self.weight {
            parameters.push((format!("{}.weight", self.prefix), var.clone()));
        }
        if let Some(var) = self.bias.as_ref().and_then(Parameter::var) {
            parameters.push((format!("{}.bias", self.prefix), var.clone()));
        }
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
