/*! Provides what the matrices of a written GGUF file are stored as: one type, or llama.cpp's mixture of types.

| | F16 | Q8_0 | Q4_K_M |
|---|---|---|---|
| matrices | F16 | Q8_0 | Q4_K |
| the value projection and the MLP's last matrix, in layers where more bits are worth most | F16 | Q8_0 | Q6_K |
| the head, or an embedding that is the head too | F16 | Q8_0 | Q6_K |
| rows that are no whole blocks of 256 | F16 | Q8_0 | Q5_0 for Q4_K, Q8_0 for Q6_K |
| rows that are no whole blocks of 32 | F16 | F16 | F16 |
| vectors | F32 | F32 | F32 |

As llama.cpp's `llama-quantize` chooses without an importance matrix, except that it knows one size of model by name: in a Llama
of 80 layers it takes Q5_K for value projections that are Q4_K here.
*/

use candle_core::quantized::GgmlDType;
use serde::{Deserialize, Serialize};

use crate::packed::row_bytes;

/// What the matrices of a GGUF file are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GgufQuant {
    /// Half precision.
    #[default]
    #[serde(rename = "f16", alias = "F16")]
    F16,
    /// Eight bits and a scale for 32 weights.
    #[serde(rename = "q8_0", alias = "Q8_0")]
    Q8_0,
    /// Four bits and a half, with six where they are worth most.
    #[serde(rename = "q4_k_m", alias = "Q4_K_M")]
    Q4KM,
}

/// What decides a tensor's type besides the mixture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Hugging Face's name of the tensor.
    pub name: &'a str,
    pub shape: &'a [usize],
    /// Number of the model's layers.
    pub layers: usize,
    /// Whether the embedding is the head.
    pub tied: bool,
}

impl GgufQuant {
    /// llama.cpp's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::Q8_0 => "Q8_0",
            Self::Q4KM => "Q4_K_M",
        }
    }

    /// llama.cpp's number, `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
        }
    }

    /// The type of one tensor.
    pub(super) fn type_of(self, place: &Place<'_>) -> GgmlDType {
        let &[_, columns] = place.shape else {
            return GgmlDType::F32;
        };
        let wanted = match self {
            Self::F16 => GgmlDType::F16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4KM if place.deserves_more() => GgmlDType::Q6K,
            Self::Q4KM => GgmlDType::Q4K,
        };
        let narrower = match wanted {
            GgmlDType::Q4K => GgmlDType::Q5_0,
            GgmlDType::Q6K => GgmlDType::Q8_0,
            other => other,
        };
        let mut fitting = [wanted, narrower].into_iter();
        let fitting = fitting.find(|dtype| row_bytes(*dtype, columns).is_some());
        fitting.unwrap_or(GgmlDType::F16)
    }
}

impl Place<'_> {
    /// Whether more bits are worth most here.
    fn deserves_more(&self) -> bool {
        let embedding = self.name == "model.embed_tokens.weight";
        if self.name == "lm_head.weight" || embedding {
            return !embedding || self.tied;
        }
        let layer = self.name.strip_prefix("model.layers.");
        let Some((layer, part)) = layer.and_then(|rest| rest.split_once('.')) else {
            return false;
        };
        let listed = part.starts_with("self_attn.v_proj") || part.starts_with("mlp.down_proj");
        let eighth = self.layers / 8;
        let of_layer = |layer: usize| {
            let middle = layer.checked_sub(eighth);
            layer < eighth
                || layer >= 7 * self.layers / 8
                || middle.is_some_and(|middle| middle % 3 == 2)
        };
        listed && layer.parse().is_ok_and(of_layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_of(quant: GgufQuant, name: &str, columns: usize, tied: bool) -> GgmlDType {
        let shape = [64, columns];
        quant.type_of(&Place {
            name,
            shape: &shape,
            layers: 28,
            tied,
        })
    }

    #[test]
    fn more_bits_are_in_the_first_and_last_eighth_and_every_third_between() {
        for part in ["self_attn.v_proj", "mlp.down_proj"] {
            let more: Vec<usize> = (0..28)
                .filter(|layer| {
                    let name = format!("model.layers.{layer}.{part}.weight");
                    type_of(GgufQuant::Q4KM, &name, 256, true) == GgmlDType::Q6K
                })
                .collect();
            assert_eq!(more, [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]);
        }
        for part in [
            "self_attn.q_proj",
            "self_attn.o_proj",
            "mlp.up_proj",
            "mlp.gate_proj",
        ] {
            let name = format!("model.layers.0.{part}.weight");
            assert_eq!(type_of(GgufQuant::Q4KM, &name, 256, true), GgmlDType::Q4K);
        }
    }

    #[test]
    fn the_head_has_more_bits_and_an_embedding_that_is_none_has_not() {
        let embedding = "model.embed_tokens.weight";
        let of = |name, columns, tied| type_of(GgufQuant::Q4KM, name, columns, tied);
        assert_eq!(of(embedding, 512, true), GgmlDType::Q6K);
        assert_eq!(of(embedding, 512, false), GgmlDType::Q4K);
        assert_eq!(of("lm_head.weight", 512, false), GgmlDType::Q6K);
    }

    #[test]
    fn rows_that_are_no_whole_blocks_take_the_next_type() {
        let query = "model.layers.9.self_attn.q_proj.weight";
        let of = |quant, name, columns| type_of(quant, name, columns, true);
        // SmolLM2 135M has 576 columns.
        assert_eq!(of(GgufQuant::Q4KM, query, 576), GgmlDType::Q5_0);
        assert_eq!(
            of(GgufQuant::Q4KM, "model.embed_tokens.weight", 576),
            GgmlDType::Q8_0
        );
        for quant in [GgufQuant::Q4KM, GgufQuant::Q8_0] {
            assert_eq!(of(quant, query, 40), GgmlDType::F16);
        }
        assert_eq!(of(GgufQuant::F16, query, 40), GgmlDType::F16);
        let norm = Place {
            name: "model.norm.weight",
            shape: &[512],
            layers: 28,
            tied: true,
        };
        assert_eq!(GgufQuant::F16.type_of(&norm), GgmlDType::F32);
    }
}
