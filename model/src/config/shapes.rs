//! Provides the names and shapes of a checkpoint's tensors.

use super::{Experts, ModelConfig};

/// A linear map: its name below the module, its outputs and inputs, and whether it has a bias.
type Linear = (String, [usize; 2], bool);

impl ModelConfig {
    /// Names and shapes of all tensors of a checkpoint, in the order of the forward pass.
    pub fn parameter_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let d = self.hidden_size;
        let rows = vec![self.vocab_size, d];
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), rows.clone())];
        for layer in 0..self.num_hidden_layers {
            let halves = [
                ("input_layernorm", "self_attn", self.attention()),
                ("post_attention_layernorm", "mlp", self.mlp(layer)),
            ];
            for (norm, module, linears) in halves {
                let prefix = format!("model.layers.{layer}");
                shapes.push((format!("{prefix}.{norm}.weight"), vec![d]));
                for (name, shape, bias) in linears {
                    let linear = format!("{prefix}.{module}.{name}");
                    shapes.push((format!("{linear}.weight"), shape.to_vec()));
                    if bias {
                        shapes.push((format!("{linear}.bias"), vec![shape[0]]));
                    }
                }
                if self.qk_norm && module == "self_attn" {
                    for name in ["q_norm", "k_norm"] {
                        let norm = format!("{prefix}.{module}.{name}.weight");
                        shapes.push((norm, vec![self.head_dim]));
                    }
                }
            }
        }
        shapes.push(("model.norm.weight".to_owned(), vec![d]));
        if !self.tie_word_embeddings {
            shapes.push(("lm_head.weight".to_owned(), rows));
        }
        shapes
    }

    fn attention(&self) -> Vec<Linear> {
        let d = self.hidden_size;
        let (q, kv) = (self.query_size(), self.key_value_size());
        let output = ("o_proj".to_owned(), [d, q], self.output_bias);
        let input = |name: &str, rows| (name.to_owned(), [rows, d], self.qkv_bias);
        match self.model_type.stacks_projections() {
            true => vec![input("qkv_proj", q + 2 * kv), output],
            false => vec![
                input("q_proj", q),
                input("k_proj", kv),
                input("v_proj", kv),
                output,
            ],
        }
    }

    fn mlp(&self, layer: usize) -> Vec<Linear> {
        let experts = self
            .experts
            .as_ref()
            .filter(|experts| experts.are_in(layer));
        if let Some(experts) = experts {
            return self.mixture(experts);
        }
        let (d, m, bias) = (self.hidden_size, self.intermediate_size, self.mlp_bias);
        match self.model_type.stacks_projections() {
            true => vec![
                ("gate_up_proj".to_owned(), [2 * m, d], bias),
                ("down_proj".to_owned(), [d, m], bias),
            ],
            false => gated("", d, m, bias).into(),
        }
    }

    fn mixture(&self, experts: &Experts) -> Vec<Linear> {
        let (d, m) = (self.hidden_size, experts.moe_intermediate_size);
        let mut linears = vec![("gate".to_owned(), [experts.num_experts, d], false)];
        for expert in 0..experts.num_experts {
            linears.extend(gated(&format!("experts.{expert}."), d, m, false));
        }
        linears
    }
}

/// A gated MLP from width `d` through `m`.
fn gated(prefix: &str, d: usize, m: usize, bias: bool) -> [Linear; 3] {
    [
        ("gate_proj", [m, d]),
        ("up_proj", [m, d]),
        ("down_proj", [d, m]),
    ]
    .map(|(name, shape)| (format!("{prefix}{name}"), shape, bias))
}
