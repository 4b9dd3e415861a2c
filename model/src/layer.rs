//! Provides one pre-norm decoder layer: attention and MLP, each added to the residual stream.

use candle_core::{DType, Tensor, Var};

use crate::attention::Attention;
use crate::kv_cache::LayerCache;
use crate::mlp::Mlp;
use crate::norm::RmsNorm;
use crate::rope::Angles;
use crate::{
    Base, Error, Linear, LoadOptions, ModelConfig, Nf4Matrix, Parameter, Result, Weight, Weights,
};

/// One layer.
#[derive(Debug)]
pub struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
    /// What the projections compute in; the residual stream may be wider.
    dtype: DType,
}

impl DecoderLayer {
    /// Reads layer `layer`, counted from 0: what lies below `model.layers.{layer}`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than the config says.
    pub fn load(
        config: &ModelConfig,
        weights: &Weights,
        layer: usize,
        options: &LoadOptions,
    ) -> Result<Self> {
        let prefix = format!("model.layers.{layer}");
        let attention = format!("{prefix}.self_attn");
        let norm = |name: &str| {
            let prefix = format!("{prefix}.{name}");
            RmsNorm::load(
                weights,
                &prefix,
                config.hidden_size,
                config.rms_norm_eps,
                options,
            )
        };
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(config, weights, (layer, &attention), options)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(config, weights, &format!("{prefix}.mlp"), options)?,
            dtype: options.dtype,
        })
    }

    /// `h = x + attention(norm(x)); h + mlp(norm(h))`
    ///
    /// The sums are formed in x's type. Where that is f32 in a bf16 model, what a layer adds is rounded, but not what all
    /// layers before it have added up.
    ///
    /// # Shapes
    /// x [B, T, d] -> [B, T, d]
    ///
    /// # Errors
    /// When shapes disagree.
    pub fn forward(
        &self,
        x: &Tensor,
        angles: &Angles,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let normed = self.input_layernorm.forward(x)?.to_dtype(self.dtype)?;
        let attended = self.self_attn.forward(&normed, angles, cache)?;
        let x = (x + attended.to_dtype(x.dtype())?)?;
        let normed = self.post_attention_layernorm.forward(&x)?;
        let transformed = self.mlp.forward(&normed.to_dtype(self.dtype)?)?;
        Ok((&x + transformed.to_dtype(x.dtype())?)?)
    }

    /// What is trained in this layer, by name.
    pub fn parameters(&self) -> Vec<(String, Var)> {
        self.linears()
            .flat_map(Linear::parameters)
            .chain(self.all_norms().flat_map(RmsNorm::parameters))
            .collect()
    }

    /// Every projection.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let attention = self.self_attn.linears().into_iter();
        attention.chain(self.mlp.linears())
    }

    /// The norm before attention and the one before the MLP.
    pub(crate) fn norms(&self) -> [&RmsNorm; 2] {
        [&self.input_layernorm, &self.post_attention_layernorm]
    }

    /// Every norm, those of attention's heads included.
    pub(crate) fn all_norms(&self) -> impl Iterator<Item = &RmsNorm> {
        let of_heads = self.self_attn.head_norms().into_iter().flatten();
        self.norms().into_iter().chain(of_heads)
    }

    pub(crate) fn attention(&self) -> &Attention {
        &self.self_attn
    }

    pub(crate) fn mlp(&self) -> &Mlp {
        &self.mlp
    }
}

/// Reads one projection and checks it against the config: its shape, and whether it has a bias.
pub(crate) fn load_projection(
    weights: &Weights,
    prefix: &str,
    (inputs, outputs): (usize, usize),
    bias: bool,
    options: &LoadOptions,
) -> Result<Linear> {
    let name = format!("{prefix}.bias");
    if weights.contains(&name) != bias {
        let (found, wanted) = if bias {
            ("none", "one")
        } else {
            ("one", "none")
        };
        return Err(Error::Unsupported {
            what: format!(
                "a checkpoint with {found} of `{name}` where config.json asks for {wanted}"
            ),
            remedy: "check that config.json belongs to these weights".into(),
        });
    }
    let linear = Linear::load(weights, prefix, options)?;
    let (actual_outputs, actual_inputs) = (linear.out_features(), linear.in_features());
    if (actual_outputs, actual_inputs) != (outputs, inputs) {
        return Err(Error::shape(
            format!("tensor `{prefix}.weight` beside this config.json"),
            &[outputs, inputs],
            &[actual_outputs, actual_inputs],
        ));
    }
    Ok(linear)
}

/// Reads projections that the checkpoint stacks, one's rows below the other's, in `{prefix}.{name}.weight`; each becomes a
/// layer of its own. What is one matrix in the checkpoint has one adapter there, so it is for models that only compute.
pub(crate) fn load_stacked<const PARTS: usize>(
    weights: &Weights,
    (prefix, name): (&str, &str),
    inputs: usize,
    parts: [(&str, usize); PARTS],
    options: &LoadOptions,
) -> Result<[Linear; PARTS]> {
    let stored = format!("{prefix}.{name}.weight");
    let is_packed = Nf4Matrix::is_stored(weights, &stored);
    if options.base != Base::AsStored || options.lora.is_some() || is_packed {
        return Err(Error::Unsupported {
            what: format!("training or four bits of `{stored}`, which holds {PARTS} projections,"),
            remedy:
                "take this model as a teacher, as it was published, and another one as the student"
                    .into(),
        });
    }
    let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
    let stacked = load_parameter(weights, &stored, &[rows, inputs], options)?;
    let mut first = 0;
    let linears = parts.map(|(part, rows)| {
        let weight = stacked.tensor().narrow(0, first, rows)?;
        first += rows;
        Linear::new(&format!("{prefix}.{part}"), Weight::Dense(weight), None)
    });
    let linears: Vec<Linear> = linears.into_iter().collect::<Result<_>>()?;
    linears
        .try_into()
        .map_err(|_| Error::Input(format!("`{stored}` has other parts than were asked for")))
}

/// Reads the parameter `name` and checks its shape before anything is converted.
pub fn load_parameter(
    weights: &Weights,
    name: &str,
    shape: &[usize],
    options: &LoadOptions,
) -> Result<Parameter> {
    let check = |stored: &[usize]| match stored == shape {
        true => Ok(()),
        false => {
            let what = format!("tensor `{name}` beside this config.json");
            Err(Error::shape(what, shape, stored))
        }
    };
    // A head that bitsandbytes was not told to skip. It is used by the row, so it is held densely.
    if options.base != Base::Trainable && Nf4Matrix::is_stored(weights, name) {
        let matrix = Nf4Matrix::read(weights, name)?;
        check(&[matrix.rows(), matrix.columns()])?;
        let value = matrix.dequantize(options.dtype, &options.device)?;
        return Ok(Parameter::Frozen(value));
    }
    check(weights.shape(name)?)?;
    Parameter::load(weights, name, options)
}
