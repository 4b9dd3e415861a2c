//! Provides one decoder layer on plain f32 slices, forward and backward, without a graph: what is kept is what products made,
//! the rest is made again where it is needed.
//!
//! ```text
//!  x ─> RmsNorm ─> q, k, v ─> RoPE ─> attention ─> o ─> + x = middle ─> RmsNorm ─> gate, up ─> SwiGLU ─> down ─> + middle
//!                  (kept)                 (kept)         (kept)                    (kept)
//! ```
//! Where a model norms its heads, q and k are kept from before that too: products then, and turned.
//!
//! candle's graph adds every gradient to a tensor of zeros, keeps both terms of every sum, and cannot add a product to what is
//! there. It stays the reference: [`DecoderLayer::forward`](crate::layer::DecoderLayer::forward).

use candle_core::Tensor;

use crate::attention::Attention;
use crate::attention_kernel::{self, Span};
use crate::element::lend;
use crate::layer::DecoderLayer;
use crate::linear::{LowRank, is_plain};
use crate::matmul::Store;
use crate::mlp::{gate_all, gate_gradient};
use crate::norm::{RmsNorm, input_gradient, normalise};
use crate::rope::Angles;
use crate::workspace::Workspace;
use crate::{Error, Gradients, Linear, Result};

/// What the backward pass of one layer needs beside its input.
#[derive(Debug)]
pub(crate) struct Activations {
    /// Turned by their positions.
    q: Vec<f32>,
    k: Vec<f32>,
    /// q and k as their products made them, where the model norms its heads.
    before_norms: Option<[Vec<f32>; 2]>,
    v: Vec<f32>,
    attended: Vec<f32>,
    /// The residual stream after attention.
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// Of q, k, v, o, gate and up.
    low: [LowRank; 6],
    /// Of down; `None` where the layer's output was not asked for.
    low_down: Option<LowRank>,
}

/// A pass through layers: the positions of its rows, and buffers that are used again.
pub(crate) struct Direct<'a> {
    pub(crate) angles: &'a Angles,
    pub(crate) spans: &'a [Span],
    pub(crate) space: Workspace,
}

/// The rows that attend to each other in [batch, len] positions.
pub(crate) fn spans(angles: &Angles, batch: usize, len: usize) -> Vec<Span> {
    match angles.documents() {
        Some(lengths) => Span::documents(lengths),
        None => Span::batch(batch, len, len),
    }
}

/// Whether [`Direct`] can take this layer: nothing but adapters is trained, and everything is f32 on the CPU.
pub(crate) fn is_direct(layer: &DecoderLayer) -> bool {
    let norm = |norm: &RmsNorm| norm.frozen().is_some_and(|(weight, _)| is_plain(weight));
    layer.linears().all(Linear::is_direct) && layer.all_norms().all(norm)
}

impl Direct<'_> {
    /// The layer's output, and what its backward pass needs.
    ///
    /// # Shapes
    /// x [N, d] -> [N, d]
    ///
    /// # Errors
    /// When the layer is not [`is_direct`].
    pub(crate) fn forward(
        &mut self,
        layer: &DecoderLayer,
        x: &[f32],
    ) -> Result<(Vec<f32>, Activations)> {
        let mut kept = self.activations(layer, x)?;
        let mut gated = self.space.take(kept.gate.len());
        {
            let _part = tracing::trace_span!("swiglu").entered();
            gate_all(&kept.gate, &kept.up, &mut gated);
        }
        let mut out = self.space.take(x.len());
        out.copy_from_slice(&kept.middle);
        let [_, _, down] = layer.mlp().linears();
        kept.low_down = Some(down.apply_into(&gated, &mut out, Store::Add)?);
        self.space.give(gated);
        Ok((out, kept))
    }

    /// Everything up to gate and up: what the backward pass needs, without the layer's output.
    ///
    /// # Errors
    /// When the layer is not [`is_direct`].
    pub(crate) fn activations(&mut self, layer: &DecoderLayer, x: &[f32]) -> Result<Activations> {
        let [attention_norm, mlp_norm] = layer.norms();
        let attention = layer.attention();
        let [to_q, to_k, to_v, to_o] = attention.linears();
        let dims = attention.dims();
        let rows = x.len() / to_q.in_features();
        let normed = self.normed(attention_norm, x)?;
        let mut apply = |linear: &Linear, x: &[f32]| -> Result<(Vec<f32>, LowRank)> {
            let mut out = self.space.take(rows * linear.out_features());
            let low = linear.apply_into(x, &mut out, Store::Replace)?;
            Ok((out, low))
        };
        let (mut q, low_q) = apply(to_q, &normed)?;
        let (mut k, low_k) = apply(to_k, &normed)?;
        let (v, low_v) = apply(to_v, &normed)?;
        let mut before_norms = None;
        if let Some([q_norm, k_norm]) = attention.head_norms() {
            let (normed_q, normed_k) = (self.normed(q_norm, &q)?, self.normed(k_norm, &k)?);
            before_norms = Some([
                std::mem::replace(&mut q, normed_q),
                std::mem::replace(&mut k, normed_k),
            ]);
        }
        if attention.turned() {
            let _part = tracing::trace_span!("rope").entered();
            self.angles.turn_rows(&mut q, dims.heads, false);
            self.angles.turn_rows(&mut k, dims.key_value_heads, false);
        }
        let mut attended = self.space.take(q.len());
        {
            let _part = tracing::trace_span!("attention, forward").entered();
            attention_kernel::forward(dims, self.spans, (&q, &k, &v), &mut attended);
        }
        let mut middle = self.space.take(x.len());
        middle.copy_from_slice(x);
        let low_o = to_o.apply_into(&attended, &mut middle, Store::Add)?;
        self.space.give(normed);

        let normed = self.normed(mlp_norm, &middle)?;
        let [to_gate, to_up, _] = layer.mlp().linears();
        let mut apply = |linear: &Linear, x: &[f32]| -> Result<(Vec<f32>, LowRank)> {
            let mut out = self.space.take(rows * linear.out_features());
            let low = linear.apply_into(x, &mut out, Store::Replace)?;
            Ok((out, low))
        };
        let (gate, low_gate) = apply(to_gate, &normed)?;
        let (up, low_up) = apply(to_up, &normed)?;
        self.space.give(normed);
        Ok(Activations {
            q,
            k,
            before_norms,
            v,
            attended,
            middle,
            gate,
            up,
            low: [low_q, low_k, low_v, low_o, low_gate, low_up],
            low_down: None,
        })
    }

    /// Takes the buffers of a pass that nobody goes back through.
    pub(crate) fn recycle(&mut self, kept: Activations) {
        let Activations {
            q,
            k,
            before_norms,
            v,
            attended,
            middle,
            gate,
            up,
            ..
        } = kept;
        self.space.give_all([q, k, v, attended, middle, gate, up]);
        if let Some(buffers) = before_norms {
            self.space.give_all(buffers);
        }
    }

    /// From dL/d output to dL/dx, where something below is trained, and the gradients of the layer's adapters.
    ///
    /// # Shapes
    /// x and grad [N, d] -> [N, d]
    ///
    /// # Errors
    /// When the layer is not [`is_direct`].
    pub(crate) fn backward(
        &mut self,
        layer: &DecoderLayer,
        x: &[f32],
        kept: Activations,
        mut grad: Vec<f32>,
        trained_below: bool,
        gradients: &mut Gradients,
    ) -> Result<Option<Vec<f32>>> {
        let [low_q, low_k, low_v, low_o, low_gate, low_up] = kept.low;
        let [attention_norm, mlp_norm] = layer.norms();
        // grad becomes dL/d middle: what came down the residual branch, and what the MLP adds.
        let (to_gate, to_up) =
            self.through_down(layer, &kept.gate, &kept.up, kept.low_down, &grad, gradients)?;
        let [gate_proj, up_proj, _] = layer.mlp().linears();
        let normed = self.normed(mlp_norm, &kept.middle)?;
        let mut to_normed = self.space.take(x.len());
        let into = Some((&mut to_normed[..], Store::Replace));
        gate_proj.pull_back_into(&normed, Some(low_gate), &to_gate, into, gradients)?;
        let into = Some((&mut to_normed[..], Store::Add));
        up_proj.pull_back_into(&normed, Some(low_up), &to_up, into, gradients)?;
        let into = (&mut grad[..], Store::Add);
        norm_gradient(mlp_norm, &kept.middle, &to_normed, into)?;
        self.space
            .give_all([to_gate, to_up, normed, kept.gate, kept.up, kept.middle]);

        let attention = layer.attention();
        let [q_proj, k_proj, v_proj, o_proj] = attention.linears();
        let mut to_attended = self.space.take(kept.attended.len());
        let into = Some((&mut to_attended[..], Store::Replace));
        o_proj.pull_back_into(&kept.attended, Some(low_o), &grad, into, gradients)?;
        let mut to = self.through_attention(attention, (&kept.q, &kept.k, &kept.v), &to_attended);
        if let (Some(norms), Some([q, k])) = (attention.head_norms(), kept.before_norms) {
            to.q = self.through_head_norm(&norms[0], q, to.q)?;
            to.k = self.through_head_norm(&norms[1], k, to.k)?;
        }
        self.space
            .give_all([to_attended, kept.attended, kept.q, kept.k, kept.v]);
        let normed = self.normed(attention_norm, x)?;
        let parts = [
            (q_proj, low_q, &to.q),
            (k_proj, low_k, &to.k),
            (v_proj, low_v, &to.v),
        ];
        for (index, (linear, low, grad)) in parts.into_iter().enumerate() {
            let store = if index == 0 {
                Store::Replace
            } else {
                Store::Add
            };
            let into = trained_below.then_some((&mut to_normed[..], store));
            linear.pull_back_into(&normed, Some(low), grad, into, gradients)?;
        }
        if trained_below {
            norm_gradient(attention_norm, x, &to_normed, (&mut grad, Store::Add))?;
        }
        self.space.give_all([to.q, to.k, to.v, normed, to_normed]);
        Ok(trained_below.then_some(grad))
    }

    /// From dL/d output to gradients in gate and up.
    fn through_down(
        &mut self,
        layer: &DecoderLayer,
        gate: &[f32],
        up: &[f32],
        low: Option<LowRank>,
        grad: &[f32],
        gradients: &mut Gradients,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let [_, _, down] = layer.mlp().linears();
        let mut gated = self.space.take(gate.len());
        {
            let _part = tracing::trace_span!("swiglu").entered();
            gate_all(gate, up, &mut gated);
        }
        let mut to_gated = self.space.take(gate.len());
        let into = Some((&mut to_gated[..], Store::Replace));
        down.pull_back_into(&gated, low, grad, into, gradients)?;
        let _part = tracing::trace_span!("swiglu").entered();
        // What the gated values took is free now.
        let (mut to_gate, mut to_up) = (gated, self.space.take(up.len()));
        gate_gradient((gate, up), &to_gated, (&mut to_gate, &mut to_up));
        self.space.give(to_gated);
        Ok((to_gate, to_up))
    }

    /// From the gradient of attention's output to those of q, k and v before they were turned.
    fn through_attention(
        &self,
        attention: &Attention,
        inputs: (&[f32], &[f32], &[f32]),
        grad: &[f32],
    ) -> attention_kernel::InputGradients {
        let dims = attention.dims();
        let mut to = {
            let _part = tracing::trace_span!("attention, backward").entered();
            attention_kernel::backward(dims, self.spans, inputs, grad)
        };
        if !attention.turned() {
            return to;
        }
        let _part = tracing::trace_span!("rope").entered();
        self.angles.turn_rows(&mut to.q, dims.heads, true);
        self.angles.turn_rows(&mut to.k, dims.key_value_heads, true);
        to
    }

    /// From the gradient of heads after their norm to that before it.
    fn through_head_norm(
        &mut self,
        norm: &RmsNorm,
        before: Vec<f32>,
        grad: Vec<f32>,
    ) -> Result<Vec<f32>> {
        let mut out = self.space.take(grad.len());
        norm_gradient(norm, &before, &grad, (&mut out, Store::Replace))?;
        self.space.give_all([before, grad]);
        Ok(out)
    }

    fn normed(&mut self, norm: &RmsNorm, x: &[f32]) -> Result<Vec<f32>> {
        let _part = tracing::trace_span!("rms-norm").entered();
        let (weight, eps) = frozen(norm)?;
        let weight = lend(weight);
        let mut out = self.space.take(x.len());
        normalise(x, weight.numbers()?, eps, &mut out);
        Ok(out)
    }
}

/// The gradient in x of a norm's output, into `out` or added to it.
fn norm_gradient(
    norm: &RmsNorm,
    x: &[f32],
    grad: &[f32],
    (out, store): (&mut [f32], Store),
) -> Result<()> {
    let _part = tracing::trace_span!("rms-norm").entered();
    let (weight, eps) = frozen(norm)?;
    let weight = lend(weight);
    let add = store == Store::Add;
    input_gradient(x, weight.numbers()?, grad, eps, add, out);
    Ok(())
}

fn frozen(norm: &RmsNorm) -> Result<(&Tensor, f32)> {
    norm.frozen()
        .ok_or_else(|| Error::Input("a trained norm has no place in a pass without a graph".into()))
}
