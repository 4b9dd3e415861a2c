/*! The merging of an adapter into its base: one model that Hugging Face's programs load without PEFT.

```text
 base: DIR | X.gguf ──> W in f32 (dequantised) ──┐
 adapter: A, B, scale ──> scale B A ─────────────┴─> + ──> bf16 | f16 | f32 ──> shards, config.json, tokenizer
```
*/

mod adapters;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use distill_hub::Wanted;
use distill_model::ModelConfig;
use serde_json::Value;

use crate::{
    Error, Result,
    config::{ComputeDtype, settings::settings},
    model_files::{FloatType, Source, Staging, write_tensors},
    run::write_atomically,
    shutdown::Shutdown,
    student::located,
};
use adapters::Adapters;

settings! {
    /// Everything `export` can be told.
    pub struct ExportConfig {
        /// Model that the adapter belongs to: a directory, 4-bit or not, a .gguf file, or a name on the hub.
        base: PathBuf = PathBuf::new(),
        /// Directory of the LoRA adapter; unset: the base alone, dequantised.
        adapter: Option<PathBuf> = None,
        /// Directory to create.
        out: PathBuf = PathBuf::new(),
        /// Type of the weights written: bf16 (which is what auto means), f16 or f32.
        dtype: ComputeDtype = ComputeDtype::Auto,
        /// Most bytes of tensors in one file; a larger tensor gets a file of its own.
        max_shard_bytes: u64 = 5_000_000_000,
        /// Directory with the tokenizer, where the base's own is not to be used or cannot be rebuilt.
        tokenizer: Option<PathBuf> = None,
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// All tensors.
    pub tensors: usize,
    /// Those that the adapter changed.
    pub merged: usize,
    /// Bytes of the tensors written.
    pub bytes: u64,
    /// Where.
    pub out: PathBuf,
}

/// Merges as `config` says. The directory appears whole or not at all.
///
/// # Errors
/// A base or an adapter that cannot be read or that do not belong together, or a file system that refuses.
pub fn run(config: &ExportConfig, shutdown: &Shutdown) -> Result<Summary> {
    for (missing, message) in [
        (
            config.base.as_os_str().is_empty(),
            "base: name the adapter's base with --base",
        ),
        (
            config.out.as_os_str().is_empty(),
            "out: name the directory to create with --out",
        ),
        (
            config.max_shard_bytes == 0,
            "max_shard_bytes: must be at least 1",
        ),
    ] {
        if missing {
            return Err(Error::Config(message.into()));
        }
    }
    let dtype = match config.dtype {
        ComputeDtype::Auto | ComputeDtype::Bf16 => FloatType::Bf16,
        ComputeDtype::F16 => FloatType::F16,
        ComputeDtype::F32 => FloatType::F32,
    };
    let staging = Staging::new(&config.out)?;
    let source = Source::open(&located(&config.base, Wanted::Model, shutdown)?)?;
    // Before the long work: it may not belong to the model.
    source.write_tokenizer(config.tokenizer.as_deref(), staging.path())?;
    let parameters = source.config().parameter_shapes();
    let adapters = match &config.adapter {
        Some(directory) => Adapters::read(directory, &parameters)?,
        None => Adapters::default(),
    };
    let bytes = write_tensors(
        staging.path(),
        config.max_shard_bytes,
        &parameters,
        |(name, _)| name,
        shutdown,
        |(name, _)| {
            let merged = adapters.merge(name, source.tensor(name)?)?;
            Ok(vec![dtype.store(name, &merged)?])
        },
    )?;
    let path = staging.path().join("config.json");
    let mut json = source.config_json()?;
    if let Value::Object(fields) = &mut json {
        dtype.set_in(fields);
    }
    write_atomically(&path, format!("{json:#}\n").as_bytes())?;
    // What was written must be what is read.
    ModelConfig::load(staging.path())?;
    staging.publish()?;
    Ok(Summary {
        tensors: parameters.len(),
        merged: adapters.len(),
        bytes,
        out: config.out.clone(),
    })
}
