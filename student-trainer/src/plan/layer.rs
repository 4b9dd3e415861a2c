/*! Provides what one decoder layer takes, in bytes: kept for its way back, on that way, and without one.

The layer is model/src/layer.rs. On the CPU its buffers are f32 and used again (model/src/ops/cpu); on a card activations are in
the compute type, and the matrices that stand in one product are unpacked together (model/src/ops/cuda). Neither keeps attention's
probabilities, [heads, T, T]: both compute them again, a block at a time.
*/

use distill_model::ModelConfig;

use super::counts::LinearShape;

const F32: u64 = 4;
/// Buffers that a pass on the CPU keeps at most for its next layer (model/src/ops/cpu/workspace.rs).
const WORKSPACE_BUFFERS: u64 = 24;

/// One layer's sizes.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    linears: &'a [LinearShape],
    /// Width of the residual stream.
    d: u64,
    /// Widths of all query heads, and of all key heads.
    q: u64,
    kv: u64,
    /// Width of the MLP.
    ff: u64,
    heads: u64,
}

impl<'a> Layer<'a> {
    /// A layer of `model` with its linears.
    pub fn new(model: &ModelConfig, linears: &'a [LinearShape]) -> Self {
        Self {
            linears,
            d: model.hidden_size as u64,
            q: model.query_size() as u64,
            kv: model.key_value_size() as u64,
            ff: model.intermediate_size as u64,
            heads: model.num_attention_heads as u64,
        }
    }

    /// What a card keeps of a token, `element` bytes a number: q, k, v, attention's output and one logsumexp a head, the f32 stream
    /// after it, gate and up, and x A^T of every adapter but down's.
    pub fn kept_on_card(self, element: u64) -> u64 {
        element * (2 * self.q + 2 * self.kv + 2 * self.ff + self.low())
            + F32 * (self.heads + self.d)
    }

    /// The most that a card adds to what is kept while a layer of `tokens` goes back, and how much of it are unpacked weights: where
    /// down's gradient is formed, SwiGLU's, or that of gate and up.
    pub fn backward_on_card(self, element: u64, tokens: u64, unpacks: bool) -> (u64, u64) {
        let Self { d, ff, .. } = self;
        let weights = |elements: u64| if unpacks { element * elements } else { 0 };
        let stream = F32 * d;
        // The gated product and its gradient, and the stream's gradient once more in the compute type.
        let down = (tokens * (stream + element * (2 * ff + d)), weights(ff * d));
        let swiglu = (tokens * (stream + element * 3 * ff), 0);
        // Gate and up give way to their gradients; beside them the norm's output and the gradient of it.
        let gate_up = (tokens * (2 * stream + element * d), weights(2 * ff * d));
        let stages = [down, swiglu, gate_up];
        let widest = stages
            .into_iter()
            .max_by_key(|(bytes, weights)| bytes + weights);
        widest.unwrap_or_default()
    }

    /// Ranks of all adapters but those that read what the MLP gates.
    fn low(self) -> u64 {
        let others = self
            .linears
            .iter()
            .filter(|linear| linear.columns != self.ff);
        others.map(|linear| linear.rank).sum()
    }

    /// What the CPU keeps: q, k, v, attention's output, the stream after it, gate and up, and x A^T of every
    /// adapter.
    pub fn kept_on_cpu(self) -> u64 {
        let low: u64 = self.linears.iter().map(|linear| linear.rank).sum();
        F32 * (2 * self.q + 2 * self.kv + self.d + 2 * self.ff + low)
    }

    /// On the CPU, on the way back: the buffers of the pass, with those that it keeps for the next of
    /// `layers` layers, and, at attention, its gradients head by head and put together.
    ///
    /// Every layer gives back three buffers more than it took (the gradients of q, k and v), until
    /// [`WORKSPACE_BUFFERS`] are kept.
    pub fn backward_on_cpu(self, layers: u64) -> u64 {
        let Self { d, q, kv, ff, .. } = self;
        let (of_ff, of_d, of_kv) = (5, 5, 2);
        let spare = WORKSPACE_BUFFERS - of_ff - of_d - of_kv;
        let grown = layers.min(spare / 3);
        let buffers = of_ff * ff + (of_d + grown) * d.max(q) + (of_kv + 2 * grown) * kv;
        let by_head = q + 2 * q;
        let whole = q + 2 * kv;
        F32 * (buffers + by_head + whole + 2 * d)
    }

    /// A forward pass that keeps nothing: the MLP's three matrices beside the stream and its norm.
    pub fn forward(self, element: u64) -> u64 {
        2 * F32 * self.d + 2 * F32 * self.d + 2 * element * self.d + 3 * element * self.ff
    }

    /// Elements of the largest linear.
    pub fn largest_linear(self) -> u64 {
        let elements = self.linears.iter().map(|linear| linear.elements());
        elements.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::TrainConfig,
        plan::{Pair, counts::Counts},
    };

    fn student(rank: usize) -> (ModelConfig, Counts) {
        let model = Pair::reference().unwrap().student.model;
        let config = TrainConfig {
            lora_rank: rank,
            ..TrainConfig::default()
        };
        let counts = Counts::new(&model, Some(&config.lora().unwrap())).unwrap();
        (model, counts)
    }

    #[test]
    fn a_layer_of_the_reference_student_by_hand() {
        let (model, counts) = student(16);
        let layer = Layer::new(&model, &counts.layers[0]);
        // d = q = 1536, kv = 256, ff = 8960, seven adapters of rank 16.
        let direct = 4 * (2 * 1536 + 2 * 256 + 1536 + 2 * 8960 + 7 * 16);
        assert_eq!(layer.kept_on_cpu(), direct);
        // bf16: the same, but 6 of the 7 adapters, f32 for the stream, and 12 heads' logsumexp.
        let card = 2 * (2 * 1536 + 2 * 256 + 2 * 8960 + 6 * 16) + 4 * (1536 + 12);
        assert_eq!(layer.kept_on_card(2), card);
        // At 512 tokens gate and up, unpacked together, are the most; with 4096 the products of SwiGLU.
        let (bytes, weights) = layer.backward_on_card(2, 512, true);
        assert_eq!(weights, 2 * 2 * 8960 * 1536);
        assert_eq!(bytes, 512 * (2 * 4 * 1536 + 2 * 1536));
        let (bytes, weights) = layer.backward_on_card(2, 4096, true);
        assert_eq!((bytes, weights), (4096 * (4 * 1536 + 2 * 3 * 8960), 0));
        assert_eq!(layer.largest_linear(), 1536 * 8960);
    }

    #[test]
    fn the_buffers_kept_for_the_next_layer_end_at_their_limit() {
        let (model, counts) = student(16);
        let layer = Layer::new(&model, &counts.layers[0]);
        assert!(layer.backward_on_cpu(1) < layer.backward_on_cpu(4));
        assert_eq!(layer.backward_on_cpu(4), layer.backward_on_cpu(28));
    }
}
