/*! Provides what one decoder layer takes, in bytes a token: kept for its way back, on that way, and without one.

```text
 graph   candle's graph keeps the inputs of every operation: on a card, in half precision, where every weight is trained
 direct  the hand-written pass (model/src/layer_direct.rs) keeps what products made: adapters in f32 on the CPU
```

Neither keeps attention's probabilities, [heads, T, T]: both compute them again, a block at a time.
*/

use distill_model::ModelConfig;

use super::counts::LinearShape;

const F32: u64 = 4;
/// Buffers that a pass without a graph keeps at most for its next layer (model/src/workspace.rs).
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

    /// What candle's graph keeps: every tensor that some operation has as an input, and the outputs.
    ///
    /// The residual stream and the adapters are f32; where activations are not, their conversions are kept beside them.
    pub fn graph(self, element: u64) -> u64 {
        let Self {
            d,
            q,
            kv,
            ff,
            heads,
            ..
        } = self;
        let converted = |width: u64, bytes: u64| if element < F32 { width * bytes } else { 0 };
        let norms = 2 * (F32 * d + converted(d, element));
        let sums = 2 * (F32 * d + converted(d, F32));
        let linear = |linear: &LinearShape| {
            let LinearShape {
                rows,
                columns,
                rank,
                bias,
            } = *linear;
            let frozen = element * rows * (1 + u64::from(bias));
            let adapter = match rank {
                0 => 0,
                // x in f32; x A^T, and the same scaled; its product with B^T, rounded, and the sum.
                _ => {
                    converted(columns, F32)
                        + 2 * F32 * rank
                        + F32 * rows
                        + converted(rows, element)
                        + element * rows
                }
            };
            frozen + adapter
        };
        let linears: u64 = self.linears.iter().map(linear).sum();
        // Rotated queries and keys; attention's output and one logsumexp a head; the gated product.
        norms + sums + linears + element * (q + kv) + element * q + F32 * heads + element * ff
    }

    /// Gradients on the way back through candle's graph, where it is widest: at the input of down, which has one in the
    /// activations' type and, through its adapter, one in f32, each as a product, as zeros and as their sum. Beside them are the
    /// gradients of the stream, of the hidden states, and what passes between them. No dequantised matrix is there then.
    pub fn graph_gradients(self, element: u64) -> u64 {
        3 * (element + F32) * self.ff + (9 * F32 + 3 * element) * self.d
    }

    /// What the hand-written pass keeps: q, k, v, attention's output, the stream after it, gate and up, and x A^T of every
    /// adapter.
    pub fn direct(self) -> u64 {
        let low: u64 = self.linears.iter().map(|linear| linear.rank).sum();
        F32 * (2 * self.q + 2 * self.kv + self.d + 2 * self.ff + low)
    }

    /// On the way back through hand-written layers: the buffers of the pass, with those that it keeps for the next of
    /// `layers` layers, and, at attention, its gradients head by head and put together.
    ///
    /// Every layer gives back three buffers more than it took (the gradients of q, k and v), until
    /// [`WORKSPACE_BUFFERS`] are kept.
    pub fn direct_backward(self, layers: u64) -> u64 {
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
        assert_eq!(layer.direct(), direct);
        // bf16: norms 2 (4d + 2d), sums 2 (4d + 4d); of every linear 2 out (twice with a bias), 4 in, 8 r, and
        // 4 + 2 + 2 out; rotated 2 (d + 256), attention 2 d and 4 a head, gated 2 ff.
        let out = 1536 + 256 + 256 + 1536 + 8960 + 8960 + 1536;
        let inputs = 6 * 1536 + 8960;
        let linears = 2 * out + 2 * (1536 + 256 + 256) + 4 * inputs + 8 * 7 * 16 + 8 * out;
        let graph = 28 * 1536 + linears + 2 * (1536 + 256) + 2 * 1536 + 4 * 12 + 2 * 8960;
        assert_eq!(layer.graph(2), graph);
        assert_eq!(layer.largest_linear(), 1536 * 8960);
    }

    #[test]
    fn without_adapters_a_graph_keeps_less_and_f32_needs_no_conversions() {
        let (model, counts) = student(16);
        let (_, plain) = (0, Counts::new(&model, None).unwrap());
        let layer = Layer::new(&model, &counts.layers[3]);
        let bare = Layer::new(&model, &plain.layers[3]);
        assert!(bare.graph(2) < layer.graph(2) / 2);
        // f32: norms 2 x 4d, sums 2 x 4d, linears 4 out and the biases, rotated, attention, gated.
        let out = 1536 + 256 + 256 + 1536 + 8960 + 8960 + 1536;
        let graph = 16 * 1536 + 4 * out + 4 * 2048 + 4 * 1792 + 4 * 1536 + 48 + 4 * 8960;
        assert_eq!(bare.graph(4), graph);
    }

    #[test]
    fn the_buffers_kept_for_the_next_layer_end_at_their_limit() {
        let (model, counts) = student(16);
        let layer = Layer::new(&model, &counts.layers[0]);
        assert!(layer.direct_backward(1) < layer.direct_backward(4));
        assert_eq!(layer.direct_backward(4), layer.direct_backward(28));
    }
}
