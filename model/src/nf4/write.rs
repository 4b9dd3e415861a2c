//! Provides a 4-bit matrix as the tensors that bitsandbytes stores for it.

use super::{Nf4Matrix, Rounding, Scales};
use safetensors::Dtype;
use serde_json::{Value, json};

/// A tensor as a safetensors file holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

impl Nf4Matrix {
    /// The tensors of the matrix `name`, such as `model.layers.0.mlp.up_proj.weight`; what [`read`](Self::read) reads.
    pub fn stored(&self, name: &str) -> Vec<StoredTensor> {
        let tensor = |suffix: &str, dtype, shape: &[usize], bytes| StoredTensor {
            name: format!("{name}{suffix}"),
            dtype,
            shape: shape.to_vec(),
            bytes,
        };
        let floats = |suffix: &str, values: &[f32]| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            tensor(suffix, Dtype::F32, &[values.len()], bytes.collect())
        };
        let dtype = match self.rounding {
            Rounding::F32 => "float32",
            Rounding::BF16 => "bfloat16",
            Rounding::F16 => "float16",
        };
        let mut state = json!({
            "quant_type": self.quant_type.name(),
            "blocksize": self.block_size,
            "dtype": dtype,
            "shape": [self.rows, self.columns],
        });
        let codes = self.codes.clone();
        let mut tensors = vec![
            tensor("", Dtype::U8, &[codes.len(), 1], codes),
            floats(".quant_map", self.quant_type.table()),
        ];
        match &self.scales {
            Scales::Plain(absmax) => tensors.push(floats(".absmax", absmax)),
            Scales::Nested(nested) => {
                let codes = nested.codes.clone();
                tensors.push(tensor(".absmax", Dtype::U8, &[codes.len()], codes));
                tensors.push(floats(".nested_absmax", &nested.absmax));
                tensors.push(floats(".nested_quant_map", &nested.map));
                if let Value::Object(state) = &mut state {
                    state.insert("nested_blocksize".into(), nested.block_size.into());
                    state.insert("nested_dtype".into(), "float32".into());
                    state.insert("nested_offset".into(), f64::from(nested.offset).into());
                }
            }
        }
        let state = state.to_string().into_bytes();
        let suffix = super::read::state_name("", self.quant_type);
        tensors.push(tensor(&suffix, Dtype::U8, &[state.len()], state));
        tensors
    }
}
