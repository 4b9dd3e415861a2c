/*! Provides the writing of a GGUF file, of a model or of an adapter, as llama.cpp's own converters write them.

```text
 ModelConfig ─────────────> general.*, llama.*, rope_freqs.weight ─┐
 GgufTokenizer ───────────> tokenizer.* (vocabulary) ──────────────┼─> GgufFile ──> candle ──> file
 tensors one by one ──> type (mixture) ──> rows (rows) ──> blocks ─┘
```

Names of tensors, the order of rows, and what a tokenizer's way of splitting is called are in tables that the reader has too.
candle writes the container, version 2, and wants all blocks in memory for it: as many bytes as the file will have.
*/

use std::io::{Seek, Write};

use candle_core::quantized::{
    GgmlDType, QTensor,
    gguf_file::{self, Value},
};
use candle_core::{Device, Tensor};

use super::blocks::blocks;
use super::mixture::{GgufQuant, Place};
use super::names::stored_name;
use super::rows::{paired_heads, stored_row};
use super::tokenizer::GgufTokenizer;
use super::{READ, rope};
use crate::element::single;
use crate::packed::row_bytes;
use crate::{Architecture, Error, ModelConfig, Result, RopeScaling};

/// ggml's version of the blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// A GGUF file in memory, until it is written.
pub struct GgufFile {
    config: ModelConfig,
    quant: GgufQuant,
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, QTensor)>,
}

impl GgufFile {
    /// A model without its tensors.
    ///
    /// # Errors
    /// A family, or a setting of one, that files are not read of.
    pub fn model(
        config: &ModelConfig,
        name: &str,
        tokenizer: &GgufTokenizer,
        quant: GgufQuant,
    ) -> Result<Self> {
        let family = family(config)?;
        let mut file = Self {
            config: config.clone(),
            quant,
            metadata: general(family, "model", name),
            tensors: Vec::new(),
        };
        file.say("general.size_label", Value::String(size_label(config)));
        file.describe(family)?;
        for (key, value) in tokenizer.entries() {
            file.say(key, value);
        }
        file.say(
            "general.quantization_version",
            Value::U32(QUANTIZATION_VERSION),
        );
        if let Some(factors) = factors(config) {
            let factors = Tensor::from_vec(factors, config.head_dim / 2, &Device::Cpu)?;
            let stored = blocks(rope::FACTORS, &factors, GgmlDType::F32)?;
            file.tensors.push((rope::FACTORS.to_owned(), stored));
        }
        Ok(file)
    }

    /// An adapter without its tensors, whose update of a matrix is `alpha` / rank B A.
    ///
    /// # Errors
    /// As [`model`](Self::model).
    pub fn adapter(config: &ModelConfig, name: &str, alpha: f32) -> Result<Self> {
        let mut file = Self {
            config: config.clone(),
            quant: GgufQuant::F16,
            metadata: general(family(config)?, "adapter", name),
            tensors: Vec::new(),
        };
        file.say("adapter.type", Value::String("lora".to_owned()));
        file.say("adapter.lora.alpha", Value::F32(alpha));
        file.say(
            "general.quantization_version",
            Value::U32(QUANTIZATION_VERSION),
        );
        Ok(file)
    }

    /// Memory that the tensors of a model take until they are written, and in the file.
    pub fn bytes_of(config: &ModelConfig, quant: GgufQuant) -> u64 {
        let shapes = config.parameter_shapes();
        let bytes = shapes.iter().map(|(name, shape)| {
            let columns = shape.last().copied().unwrap_or_default();
            let rows: usize = shape.iter().rev().skip(1).product();
            let dtype = type_of(config, quant, name, shape);
            row_bytes(dtype, columns).map_or(0, |row| row as u64 * rows as u64)
        });
        bytes.sum()
    }

    /// Adds the tensor that Hugging Face calls `name`; bytes that it takes.
    ///
    /// # Errors
    /// A tensor of another model, or one that cannot be stored.
    pub fn push(&mut self, name: &str, tensor: &Tensor) -> Result<u64> {
        let stored = self.stored_name(name)?;
        let dtype = type_of(&self.config, self.quant, name, tensor.dims());
        self.add(stored, name, tensor, dtype)
    }

    /// Adds an adapter of the matrix that Hugging Face calls `name`; bytes that it takes.
    ///
    /// # Shapes
    /// A [rank, in], B [out, rank]
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_adapter(&mut self, name: &str, a: &Tensor, b: &Tensor) -> Result<u64> {
        let stored = self.stored_name(name)?;
        // The columns of A are those of the matrix, which no order concerns.
        let a = blocks(name, a, GgmlDType::F32)?;
        let bytes = a.storage_size_in_bytes() as u64;
        self.tensors.push((format!("{stored}.lora_a"), a));
        Ok(bytes + self.add(format!("{stored}.lora_b"), name, b, GgmlDType::F32)?)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, out: &mut (impl Write + Seek)) -> Result<()> {
        let metadata = self.metadata.iter();
        let metadata: Vec<(&str, &Value)> =
            metadata.map(|(key, value)| (key.as_str(), value)).collect();
        let tensors = self.tensors.iter();
        let tensors: Vec<(&str, &QTensor)> = tensors
            .map(|(name, blocks)| (name.as_str(), blocks))
            .collect();
        Ok(gguf_file::write(out, &metadata, &tensors)?)
    }

    fn add(
        &mut self,
        stored: String,
        name: &str,
        tensor: &Tensor,
        dtype: GgmlDType,
    ) -> Result<u64> {
        let blocks = match paired_heads(&self.config, name) {
            Some(heads) => blocks(name, &in_pairs(tensor, heads)?, dtype)?,
            None => blocks(name, tensor, dtype)?,
        };
        let bytes = blocks.storage_size_in_bytes() as u64;
        self.tensors.push((stored, blocks));
        Ok(bytes)
    }

    fn stored_name(&self, name: &str) -> Result<String> {
        stored_name(name)
            .ok_or_else(|| Error::Input(format!("`{name}` has no name in a GGUF file")))
    }

    fn say(&mut self, key: &str, value: Value) {
        self.metadata.push((key.to_owned(), value));
    }

    /// Says under the family's name what the model's shape is.
    fn describe(&mut self, family: Architecture) -> Result<()> {
        let config = self.config.clone();
        let number = |what: &str, value: usize| {
            let number = u32::try_from(value);
            number.map(Value::U32).map_err(|_| {
                Error::Input(format!("{what}: {value} is beyond a GGUF file's numbers"))
            })
        };
        let numbers = [
            ("block_count", config.num_hidden_layers),
            ("context_length", config.max_position_embeddings),
            ("embedding_length", config.hidden_size),
            ("feed_forward_length", config.intermediate_size),
            ("attention.head_count", config.num_attention_heads),
            ("attention.head_count_kv", config.num_key_value_heads),
            ("attention.key_length", config.head_dim),
            ("attention.value_length", config.head_dim),
        ];
        let more = [
            ("vocab_size", config.vocab_size),
            ("rope.dimension_count", config.head_dim),
        ];
        // llama.cpp takes them from elsewhere for the other families.
        let more = more.into_iter().filter(|_| family == Architecture::Llama);
        let window = config.windows.iter().flatten().next();
        let window = window.map(|window| ("attention.sliding_window", *window));
        for (key, value) in numbers.into_iter().chain(more).chain(window) {
            self.say(&format!("{}.{key}", family.name()), number(key, value)?);
        }
        for (key, value) in [
            ("rope.freq_base", config.rope_theta),
            ("attention.layer_norm_rms_epsilon", config.rms_norm_eps),
        ] {
            self.say(
                &format!("{}.{key}", family.name()),
                Value::F32(single(value)),
            );
        }
        self.say("general.file_type", Value::U32(self.quant.file_type()));
        Ok(())
    }
}

/// What this build does not write, where llama.cpp's own converter may.
pub(super) fn unsupported(what: String) -> Error {
    Error::Unsupported {
        what: format!("{what} in a GGUF file"),
        remedy: "write the merged model with --format hf and convert that with llama.cpp's convert_hf_to_gguf.py".to_owned(),
    }
}

/// What llama.cpp calls the model: Mistral's are Llama's, with a window that the reader takes and llama.cpp does not look at.
fn family(config: &ModelConfig) -> Result<Architecture> {
    let family = match config.model_type {
        Architecture::Mistral => Architecture::Llama,
        other => other,
    };
    if !READ.contains(&family) {
        return Err(unsupported(format!(
            "a model of the family {}",
            family.name()
        )));
    }
    let llama = family == Architecture::Llama;
    let scaled = match config.rope_scaling {
        RopeScaling::None => None,
        RopeScaling::Llama3 { .. } | RopeScaling::LongRope { .. } if llama => None,
        RopeScaling::Linear { .. } => Some("linear"),
        RopeScaling::Llama3 { .. } => Some("llama3"),
        RopeScaling::LongRope { .. } => Some("longrope"),
    };
    if let Some(kind) = scaled {
        return Err(unsupported(format!(
            "RoPE scaling `{kind}` of a {} model",
            family.name()
        )));
    }
    let first = config.windows.first();
    let every = config.windows.iter().all(|window| Some(window) == first);
    if config.windows.iter().any(Option::is_some) && !(llama && every) {
        return Err(unsupported(
            "attention to a window in some of the layers".to_owned(),
        ));
    }
    let biased = config.qkv_bias != (family == Architecture::Qwen2);
    if biased || config.output_bias || config.mlp_bias {
        return Err(unsupported(format!(
            "a {} model with attention_bias or mlp_bias",
            family.name()
        )));
    }
    Ok(family)
}

fn general(family: Architecture, kind: &str, name: &str) -> Vec<(String, Value)> {
    let texts = [
        ("general.architecture", family.name()),
        ("general.type", kind),
        ("general.name", name),
    ];
    let texts = texts.into_iter();
    texts
        .map(|(key, text)| (key.to_owned(), Value::String(text.to_owned())))
        .collect()
}

/// What llama.cpp calls the number of parameters: two digits or more, and a unit.
fn size_label(config: &ModelConfig) -> String {
    let shapes = config.parameter_shapes();
    let count: usize = shapes
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    let count = count as f64;
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M")];
    let (unit, letter) = units
        .into_iter()
        .find(|(unit, _)| count > *unit)
        .unwrap_or((1e3, "K"));
    let digits = if count / unit < 9.5 { 1 } else { 0 };
    format!("{:.digits$}{letter}", count / unit)
}

/// What each frequency is divided by, where any is.
fn factors(config: &ModelConfig) -> Option<Vec<f32>> {
    if config.rope_scaling == RopeScaling::None {
        return None;
    }
    let pairs = 0..config.head_dim / 2;
    // A frequency of 1 radian would not do: Llama 3.1's factor depends on it.
    let factor = |pair: usize| {
        let exponent = -2.0 * pair as f64 / config.head_dim as f64;
        let omega = config.rope_theta.powf(exponent);
        single(omega / config.rope_scaling.scale(pair, omega))
    };
    Some(pairs.map(factor).collect())
}

fn type_of(config: &ModelConfig, quant: GgufQuant, name: &str, shape: &[usize]) -> GgmlDType {
    quant.type_of(&Place {
        name,
        shape,
        layers: config.num_hidden_layers,
        tied: config.tie_word_embeddings,
    })
}

/// Rows in the order in which they are stored.
fn in_pairs(tensor: &Tensor, heads: usize) -> Result<Tensor> {
    let rows = tensor.dim(0)?;
    let mut order = vec![0_u32; rows];
    for (row, id) in (0..rows).zip(0_u32..) {
        if let Some(place) = order.get_mut(stored_row(row, rows, heads)) {
            *place = id;
        }
    }
    let order = Tensor::from_vec(order, rows, tensor.device())?;
    Ok(tensor.contiguous()?.index_select(&order, 0)?)
}
