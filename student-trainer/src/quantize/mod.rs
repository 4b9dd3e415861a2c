/*! The conversion of a model into a 4-bit base: safetensors or GGUF in, a bitsandbytes checkpoint out.

```text
 DIR | X.gguf ──> Source: tensors by Hugging Face names ──> kept layers, renumbered ──> NF4, FP4 | bf16 ──> shards, config.json
```
*/

#[cfg(test)]
mod bitsandbytes_tests;
#[cfg(test)]
mod fixture_tests;
mod layers;
mod skip;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use candle_core::{DType, Tensor};
use distill_hub::Wanted;
use distill_model::{
    BLOCK_SIZES, ModelConfig, Nf4Matrix, QuantOptions, QuantType, Rounding, StoredTensor,
};
use distill_program::settings;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Error, Result,
    config::needs::FOUR_BITS,
    files::write_json,
    model_files::{FloatType, SHARD_BYTES, Source, Staging, write_tensors},
    shutdown::Shutdown,
    student::located,
};
use layers::LayerMap;
use skip::SkippedModules;

/// What linears are written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredAs {
    /// bitsandbytes' four bits, of the kind that `quant_type` says.
    #[default]
    #[serde(rename = "4bit", alias = "nf4")]
    FourBit,
    /// bfloat16, a plain checkpoint.
    Bf16,
    /// Single precision, a plain checkpoint.
    F32,
}

impl StoredAs {
    /// What everything else is written as.
    fn dense(self) -> FloatType {
        match self {
            Self::F32 => FloatType::F32,
            Self::FourBit | Self::Bf16 => FloatType::Bf16,
        }
    }
}

/// What four bits stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FourBitKind {
    /// 4-bit NormalFloat.
    #[default]
    Nf4,
    /// 4-bit floating point.
    Fp4,
}

settings! {
    /// Everything `quantize` can be told.
    pub struct QuantizeConfig: once {
        group "Model":
        /// Model to read: a directory, a .gguf file, or a name on the hub.
        ///
        /// A name is org/name or org/name/file.gguf.
        from: PathBuf = PathBuf::new(), value: "DIR|GGUF|NAME", essential: true;
        /// Directory to create.
        out: PathBuf = PathBuf::new(), value: "DIR", essential: true;
        /// Layers to keep, from 0, such as 0-9,20-29; unset: all.
        keep_layers: Option<String> = None, value: "LAYERS";
        group "Weights":
        /// What linears are written as.
        ///
        /// Everything else is bf16, or f32 with f32.
        weights: StoredAs as Text = StoredAs::FourBit, essential: true;
        /// What four bits stand for.
        quant_type: FourBitKind as Text = FourBitKind::Nf4, needs: [FOUR_BITS];
        /// Quantise the scales too, to 8 bits.
        double_quant: bool = true, needs: [FOUR_BITS];
        /// Weights that share a scale: 32, 64, 128 and so on to 4096.
        block_size: usize = 64, needs: [FOUR_BITS];
        /// Type that transformers is told to compute in.
        compute_dtype: FloatType as Text = FloatType::Bf16, needs: [FOUR_BITS];
        /// Linears that stay bf16: ends of their names, or transformers' regular expressions (llm_int8_skip_modules).
        skip_modules: Vec<String> = Vec::new(), needs: [FOUR_BITS];
        group "Model":
        /// Directory with the tokenizer or name on the hub, where the model's own is not to be used or cannot be rebuilt.
        tokenizer: Option<PathBuf> = None;
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
    let options = config.quant_options()?;
    let staging = Staging::new(&config.out)?;
    let source = Source::open(&located(&config.from, Wanted::Model, shutdown)?)?;
    if source.is_quantized() {
        return Err(Error::file(
            &config.from,
            "is 4-bit already; start from the full-precision checkpoint",
        ));
    }
    let model = source.config();
    let map = LayerMap::new(config.keep_layers.as_deref(), model.num_hidden_layers)?;
    // Before the long work: it may not belong to the model.
    let tokenizer = config.tokenizer.as_deref();
    let tokenizer = tokenizer
        .map(|given| located(given, Wanted::Tokenizer, shutdown))
        .transpose()?;
    source.write_tokenizer(tokenizer.as_deref(), staging.path())?;
    let kept: Vec<(String, String)> = model
        .parameter_shapes()
        .into_iter()
        .filter_map(|(name, _)| Some((map.renamed(&name)?, name)))
        .collect();
    let skipped = SkippedModules::new(&config.skip_modules)?;
    skipped.refuse_unused(kept.iter().filter_map(|(name, _)| linear(name)))?;
    let mut bf16_bytes = 0;
    let make = |(name, stored): &(String, String)| {
        let tensor = source.tensor(stored)?;
        bf16_bytes += 2 * tensor.elem_count() as u64;
        match linear(name) {
            Some(module) if config.weights == StoredAs::FourBit && !skipped.contains(module)? => {
                quantized(name, &tensor, options)
            }
            _ => Ok(vec![config.weights.dense().store(name, &tensor)?]),
        }
    };
    let bytes = write_tensors(
        staging.path(),
        SHARD_BYTES,
        &kept,
        |(name, _)| name,
        shutdown,
        make,
    )?;
    let json = with_layers(source.config_json()?, model, &map);
    let json = config_json(json, config);
    write_json(&staging.path().join("config.json"), &json)?;
    // What was written must be what is read.
    ModelConfig::load(staging.path())?;
    staging.publish()?;
    Ok(Summary {
        layers: map.len(),
        bf16_bytes,
        bytes,
        out: config.out.clone(),
    })
}

impl QuantizeConfig {
    fn quant_options(&self) -> Result<QuantOptions> {
        let block_size = self.block_size;
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            return Err(Error::Config(format!(
                "block_size: {block_size} is no power of two in {BLOCK_SIZES:?}"
            )));
        }
        Ok(QuantOptions {
            quant_type: match self.quant_type {
                FourBitKind::Nf4 => QuantType::Nf4,
                FourBitKind::Fp4 => QuantType::Fp4,
            },
            block_size,
            double_quant: self.double_quant,
        })
    }
}

/// The module of a linear's matrix; `None` for any other tensor.
fn linear(name: &str) -> Option<&str> {
    let module = name.strip_suffix(".weight")?;
    (module.starts_with("model.layers.") && module.ends_with("proj")).then_some(module)
}

/// A linear's matrix in four bits.
///
/// f16 and f32 sources become bf16 first: bitsandbytes quantises what a bf16 checkpoint holds, and its range holds every value of
/// theirs; what is lost is f16's three last bits, far below a step of four bits.
fn quantized(name: &str, tensor: &Tensor, options: QuantOptions) -> Result<Vec<StoredTensor>> {
    let (rows, columns) = tensor.dims2()?;
    let rounded = tensor.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
    let values: Vec<f32> = rounded.flatten_all()?.to_vec1()?;
    let matrix = Nf4Matrix::quantize_as(options, &values, rows, columns, Rounding::BF16)?;
    Ok(matrix.stored(name))
}

/// The source's configuration with the layers that stay: their number, and which of them differ from the others.
fn with_layers(mut json: Value, model: &ModelConfig, map: &LayerMap) -> Value {
    let Value::Object(fields) = &mut json else {
        return json;
    };
    let (windows, turned) = (map.kept(&model.windows), map.kept(&model.turned));
    fields.insert("num_hidden_layers".into(), windows.len().into());
    // One entry a layer of the source. Families whose layers differ name a first one with a window, which is another one now.
    fields.remove("layer_types");
    if fields.contains_key("max_window_layers") && windows.iter().any(Option::is_some) {
        let kind = |window: &Option<usize>| match window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        let kinds: Vec<&str> = windows.iter().map(kind).collect();
        fields.insert("layer_types".into(), kinds.into());
    }
    if model.turned.contains(&false) {
        let flags: Vec<u8> = turned.into_iter().map(u8::from).collect();
        fields.insert("no_rope_layers".into(), flags.into());
    }
    json
}

/// The configuration with what changes beside the layers: the type, and what transformers must know of four bits.
fn config_json(mut json: Value, config: &QuantizeConfig) -> Value {
    let Value::Object(fields) = &mut json else {
        return json;
    };
    config.weights.dense().set_in(fields);
    if config.weights == StoredAs::FourBit {
        let mut skipped = vec!["lm_head"];
        skipped.extend(config.skip_modules.iter().map(String::as_str));
        let quantization = json!({
            "quant_method": "bitsandbytes",
            "load_in_4bit": true,
            "load_in_8bit": false,
            "bnb_4bit_quant_type": config.quant_type,
            "bnb_4bit_use_double_quant": config.double_quant,
            "bnb_4bit_compute_dtype": config.compute_dtype.name(),
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": skipped,
        });
        fields.insert("quantization_config".into(), quantization);
    }
    json
}
