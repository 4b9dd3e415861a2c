/*! The conversion of a model into a 4-bit base: safetensors or GGUF in, a bitsandbytes NF4 checkpoint out.

```text
 DIR | X.gguf ──> Source: tensors by Hugging Face names ──> kept layers, renumbered ──> NF4 | bf16 ──> shards, config.json
```

A tensor is read, converted and written before the next one, so that a model larger than memory passes through.
*/

#[cfg(test)]
mod fixture_tests;
mod layers;
mod publish;
mod shards;
mod source;
#[cfg(test)]
mod tests;

use std::{fs, path::PathBuf};

use candle_core::{DType, Tensor};
use distill_hub::Wanted;
use distill_model::{ModelConfig, Nf4Matrix, Rounding, StoredTensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Error, Result,
    config::settings::{setting_kinds, settings},
    run::{Progress, write_atomically},
    shutdown::Shutdown,
    student::located,
};
use layers::LayerMap;
use shards::ShardWriter;
use source::Source;

/// What linears are written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredAs {
    /// bitsandbytes' 4-bit NormalFloat, double quantised.
    #[default]
    Nf4,
    /// bfloat16, a plain checkpoint.
    Bf16,
    /// Single precision, a plain checkpoint.
    F32,
}

setting_kinds! {
    Text: StoredAs;
}

settings! {
    /// Everything `quantize` can be told.
    pub struct QuantizeConfig {
        /// Model to read: a Hugging Face directory, a .gguf file, or a name on the hub (org/name, org/name/file.gguf).
        from: PathBuf = PathBuf::new(),
        /// Directory to create.
        out: PathBuf = PathBuf::new(),
        /// Layers to keep, from 0, such as 0-9,20-29; unset: all.
        keep_layers: Option<String> = None,
        /// What linears are written as: nf4, bf16 or f32; everything else is bf16, or f32 with f32.
        weights: StoredAs = StoredAs::Nf4,
        /// Directory with the tokenizer or name on the hub, where the model's own is not to be used or cannot be rebuilt.
        tokenizer: Option<PathBuf> = None,
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Layers kept.
    pub layers: usize,
    /// Bytes of the tensors at two bytes each parameter.
    pub bf16_bytes: u64,
    /// Bytes of the tensors written.
    pub bytes: u64,
    /// Where.
    pub out: PathBuf,
}

/// Converts as `config` says. The directory appears whole or not at all.
///
/// # Errors
/// A source that cannot be read, layers that it does not have, or a file system that refuses.
pub fn run(config: &QuantizeConfig, shutdown: &Shutdown) -> Result<Summary> {
    for (path, message) in [
        (
            &config.from,
            "from: name a model directory or a .gguf file with --from",
        ),
        (&config.out, "out: name the directory to create with --out"),
    ] {
        if path.as_os_str().is_empty() {
            return Err(Error::Config(message.into()));
        }
    }
    publish::refuse_used(&config.out)?;
    let source = Source::open(&located(&config.from, Wanted::Model, shutdown)?)?;
    let model = source.config();
    let map = LayerMap::new(config.keep_layers.as_deref(), model.num_hidden_layers)?;
    let parent = config.out.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.map_or_else(|| PathBuf::from("."), PathBuf::from);
    fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
    let staging = tempfile::Builder::new()
        .prefix(".quantize-")
        .tempdir_in(&parent)
        .map_err(Error::io("create a directory in", &parent))?;

    let kept: Vec<(String, String)> = model
        .parameter_shapes()
        .into_iter()
        .filter_map(|(name, _)| Some((map.renamed(&name)?, name)))
        .collect();
    let mut writer = ShardWriter::new(staging.path());
    let mut progress = Progress::start(kept.len() as u64, "tensor");
    let mut bf16_bytes = 0;
    for (name, stored) in &kept {
        let tensor = source.tensor(stored)?;
        bf16_bytes += 2 * tensor.elem_count() as u64;
        for tensor in convert(name, &tensor, config.weights)? {
            writer.push(tensor)?;
        }
        progress.advance(|| name.clone());
        if shutdown.is_requested() {
            return Err(Error::Config("stopped; nothing was written".into()));
        }
    }
    progress.finish();
    let bytes = writer.finish()?;
    let path = staging.path().join("config.json");
    let json = config_json(source.config_json()?, map.len(), config.weights);
    let text =
        serde_json::to_string_pretty(&json).map_err(|e| Error::file(&path, e.to_string()))?;
    write_atomically(&path, (text + "\n").as_bytes())?;
    let tokenizer = config.tokenizer.as_deref();
    let tokenizer = tokenizer
        .map(|given| located(given, Wanted::Tokenizer, shutdown))
        .transpose()?;
    source.write_tokenizer(tokenizer.as_deref(), staging.path())?;
    // What was written must be what is read.
    ModelConfig::load(staging.path())?;
    publish::publish(staging, &parent, &config.out)?;
    Ok(Summary {
        layers: map.len(),
        bf16_bytes,
        bytes,
        out: config.out.clone(),
    })
}

/// One parameter as what is stored for it.
///
/// f16 and f32 sources become bf16 as well: bitsandbytes computes in it, and its range holds every value of theirs; what is lost
/// is f16's three last bits, far below a step of NF4.
fn convert(name: &str, tensor: &Tensor, stored_as: StoredAs) -> Result<Vec<StoredTensor>> {
    let is_linear = name.starts_with("model.layers.") && name.ends_with("proj.weight");
    if stored_as == StoredAs::Nf4 && is_linear {
        let (rows, columns) = tensor.dims2()?;
        // bitsandbytes quantises what a bf16 checkpoint holds.
        let rounded = tensor.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
        let values: Vec<f32> = rounded.flatten_all()?.to_vec1()?;
        let matrix = Nf4Matrix::quantize(&values, rows, columns, true, Rounding::BF16)?;
        return Ok(matrix.stored(name));
    }
    let (dtype, bytes) = match stored_as {
        StoredAs::F32 => {
            let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            (safetensors::Dtype::F32, bytes.collect())
        }
        StoredAs::Nf4 | StoredAs::Bf16 => {
            let values: Vec<half::bf16> = tensor.to_dtype(DType::BF16)?.flatten_all()?.to_vec1()?;
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            (safetensors::Dtype::BF16, bytes.collect())
        }
    };
    Ok(vec![StoredTensor {
        name: name.to_owned(),
        dtype,
        shape: tensor.dims().to_vec(),
        bytes,
    }])
}

/// The source's configuration with what changes: the number of layers, the type, and what transformers must know of NF4.
fn config_json(mut config: Value, layers: usize, stored_as: StoredAs) -> Value {
    let Value::Object(fields) = &mut config else {
        return config;
    };
    fields.insert("num_hidden_layers".into(), layers.into());
    // One entry a layer of the source; only one kind is supported, so it can be left out.
    fields.remove("layer_types");
    fields.remove("quantization_config");
    fields.remove("dtype");
    let dtype = match stored_as {
        StoredAs::F32 => "float32",
        StoredAs::Nf4 | StoredAs::Bf16 => "bfloat16",
    };
    fields.insert("torch_dtype".into(), dtype.into());
    if stored_as == StoredAs::Nf4 {
        fields.insert(
            "quantization_config".into(),
            json!({
                "quant_method": "bitsandbytes",
                "load_in_4bit": true,
                "load_in_8bit": false,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": true,
                "bnb_4bit_compute_dtype": "bfloat16",
                "bnb_4bit_quant_storage": "uint8",
                "llm_int8_skip_modules": ["lm_head"],
            }),
        );
    }
    config
}
