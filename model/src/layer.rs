//! Provides one pre-norm decoder layer, attention and MLP, each added to the residual stream, forward and back: what is kept is
//! what products made, the rest is made again where it is needed.
//!
//! ```text
//!  x ─> RmsNorm ─> q, k, v ─> RoPE ─> attention ─> o ─> + x = middle ─> RmsNorm ─> gate, up ─> SwiGLU ─> down ─> + middle
//!                  (kept)                 (kept)         (kept)                    (kept)
//! ```
//! Where a model norms its heads, q and k are kept from before that too.

use candle_core::Var;

use crate::attention::Attention;
use crate::kv_cache::LayerCache;
use crate::mlp::Mlp;
use crate::norm::RmsNorm;
use crate::ops::{Ops, Projected, Span};
use crate::rope::Angles;
use crate::{
    Base, Error, Gradients, Linear, LoadOptions, ModelConfig, Nf4Matrix, Parameter, Result, Weight,
    Weights,
};

/// One layer.
#[derive(Debug)]
pub struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
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
        })
    }

    /// `middle = x + attention(norm(x)); middle + mlp(norm(middle))`
    ///
    /// What a layer adds may be rounded, but not what all layers before it have added up.
    ///
    /// # Shapes
    /// x [N, d] -> [N, d]
    ///
    /// # Errors
    /// When shapes disagree, or there is no room.
    pub(crate) fn forward<O: Ops>(
        &self,
        pass: &mut Pass<'_, O>,
        x: &O::Array,
        cache: Option<&LayerCache>,
    ) -> Result<O::Array> {
        let kept = self.activations(pass, x, cache)?;
        let gated = pass.ops.swiglu(&kept.gate_up)?;
        let mut stream = kept.middle;
        let down = self.mlp.down();
        pass.ops.add_linear(down, &gated, &mut stream)?;
        let Projected { heads, .. } = kept.projected;
        pass.ops.recycle_pair(kept.gate_up);
        pass.ops
            .recycle([gated, kept.attended, heads.q, heads.k, heads.v]);
        Ok(stream)
    }

    /// As [`forward`](Self::forward), and what the way back needs.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub(crate) fn forward_and_keep<O: Ops>(
        &self,
        pass: &mut Pass<'_, O>,
        x: &O::Array,
    ) -> Result<(O::Array, Activations<O>)> {
        let mut kept = self.activations(pass, x, None)?;
        let gated = pass.ops.swiglu(&kept.gate_up)?;
        let mut stream = pass.ops.copy(&kept.middle)?;
        let low = pass.ops.add_linear(self.mlp.down(), &gated, &mut stream)?;
        kept.low_down = Some(low);
        pass.ops.recycle([gated]);
        Ok((stream, kept))
    }

    /// Everything up to gate and up: what the way back needs, without the layer's output.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub(crate) fn activations<O: Ops>(
        &self,
        pass: &mut Pass<'_, O>,
        x: &O::Array,
        cache: Option<&LayerCache>,
    ) -> Result<Activations<O>> {
        let attention = &self.self_attn;
        let (dims, ops) = (attention.dims(), &mut pass.ops);
        let (normed, mut middle) = ops.rms_norm_and_copy(&self.input_layernorm, x)?;
        let projected = ops.project(attention, &normed, pass.angles)?;
        let (attended, softmax) = match cache {
            None => ops.attention(dims, pass.spans, &projected.heads)?,
            Some(cache) => ops.attention_in_cache(dims, pass.spans, &projected.heads, cache)?,
        };
        let low_o = ops.add_linear(attention.output(), &attended, &mut middle)?;
        ops.recycle([normed]);
        let normed = ops.rms_norm(&self.post_attention_layernorm, &middle)?;
        let (gate_up, low_gate_up) = ops.gate_up(&self.mlp, &normed)?;
        ops.recycle([normed]);
        Ok(Activations {
            projected,
            attended,
            softmax,
            middle,
            gate_up,
            low_o,
            low_gate_up,
            low_down: None,
        })
    }

    /// From dL/d output to dL/dx, where something below is trained, and the gradients of what is trained in the layer.
    ///
    /// # Shapes
    /// x and grad [N, d] -> [N, d]
    ///
    /// # Errors
    /// When there is no room.
    pub(crate) fn backward<O: Ops>(
        &self,
        pass: &mut Pass<'_, O>,
        x: &O::Array,
        kept: Activations<O>,
        grad: O::Array,
        trained_below: bool,
        gradients: &mut Gradients,
    ) -> Result<Option<O::Array>> {
        let ops = &mut pass.ops;
        // grad becomes dL/d middle: what came down the residual branch, and what the MLP adds.
        let gated = ops.swiglu(&kept.gate_up)?;
        let down = self.mlp.down();
        let to_gated = ops.add_linear_gradient(down, &gated, kept.low_down, &grad, gradients)?;
        ops.recycle([gated]);
        let to_gate_up = ops.swiglu_gradient(kept.gate_up, to_gated)?;
        let norm = &self.post_attention_layernorm;
        let normed = ops.rms_norm(norm, &kept.middle)?;
        let low = kept.low_gate_up;
        let to_normed = ops.gate_up_gradient(&self.mlp, &normed, low, to_gate_up, gradients)?;
        let grad = ops.rms_norm_gradient(norm, &kept.middle, &to_normed, Some(grad), gradients)?;
        ops.recycle([normed, to_normed, kept.middle]);

        let attention = &self.self_attn;
        let Projected {
            heads,
            before_norms,
            low,
        } = kept.projected;
        let (attended, low_o) = (kept.attended, Some(kept.low_o));
        let output = attention.output();
        let to_attended = ops.add_linear_gradient(output, &attended, low_o, &grad, gradients)?;
        let made = (&attended, &kept.softmax);
        let dims = attention.dims();
        let to_heads = ops.attention_gradient(dims, pass.spans, &heads, made, &to_attended)?;
        ops.recycle([to_attended, attended, heads.q, heads.k, heads.v]);
        let norm = &self.input_layernorm;
        let normed = ops.rms_norm(norm, x)?;
        let to_normed = ops.project_gradient(
            attention,
            (&normed, before_norms, low),
            pass.angles,
            to_heads,
            // Where the norm is trained, its gradient is wanted though nothing below is.
            trained_below || norm.var().is_some(),
            gradients,
        )?;
        ops.recycle([normed]);
        let Some(to_normed) = to_normed else {
            return Ok(None);
        };
        if !trained_below {
            ops.rms_norm_weight_gradient(norm, x, &to_normed, gradients)?;
            return Ok(None);
        }
        let grad = ops.rms_norm_gradient(norm, x, &to_normed, Some(grad), gradients)?;
        ops.recycle([to_normed]);
        Ok(Some(grad))
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

/// A pass through layers: the operations, and the positions of its rows.
#[derive(Debug)]
pub(crate) struct Pass<'a, O> {
    pub(crate) ops: O,
    pub(crate) angles: &'a Angles,
    pub(crate) spans: &'a [Span],
}

/// What the way back of one layer needs beside its input.
#[derive(Debug)]
pub(crate) struct Activations<O: Ops> {
    projected: Projected<O>,
    attended: O::Array,
    softmax: O::Softmax,
    /// The residual stream after attention.
    middle: O::Array,
    gate_up: O::Pair,
    low_o: O::Low,
    low_gate_up: O::Low,
    /// `None` where the layer's output was not asked for.
    low_down: Option<O::Low>,
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
