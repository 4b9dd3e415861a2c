//! Provides the committed fixtures: where they are, their tensors, and model directories put together from them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use distill_model::{Decoder, LoadOptions, ModelConfig, Weights};
use tempfile::TempDir;

/// A file or directory under `tests/fixtures`.
pub fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(relative)
}

/// All tensors of a safetensors file under `tests/fixtures`, in the file's dtypes.
///
/// # Errors
/// When the file is missing or broken; the scripts beside the fixtures make them anew.
pub fn tensors(relative: &str) -> Result<HashMap<String, Tensor>> {
    let file = path(relative);
    candle_core::safetensors::load(&file, &Device::Cpu)
        .with_context(|| format!("fixture {}", file.display()))
}

/// A directory as users have it: the model `models/MODEL` with the files of the tokenizer directory `TOKENIZER`. It goes
/// when the value is dropped.
///
/// The tokenizer knows 384 ids; `qwen2-untied` and `qwen2-bf16` have 384 head rows, `qwen2-tied` 400, `llama-gqa` 416.
///
/// # Errors
/// When a fixture is missing or the temporary directory cannot be written.
pub fn model_directory(model: &str, tokenizer: &str) -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    for source in [path("models").join(model), path(tokenizer)] {
        let listing =
            std::fs::read_dir(&source).with_context(|| format!("fixture {}", source.display()))?;
        for entry in listing {
            let entry = entry?;
            let name = entry.file_name();
            if !name.to_string_lossy().starts_with("expected.") {
                std::fs::copy(entry.path(), directory.path().join(name))?;
            }
        }
    }
    Ok(directory)
}

/// The decoder of a model directory, frozen, on the CPU.
///
/// # Errors
/// Whatever the model crate refuses.
pub fn decoder(directory: &Path, dtype: DType) -> Result<Decoder> {
    let config = ModelConfig::load(directory)?;
    let weights = Weights::open(directory)?;
    let options = LoadOptions {
        dtype,
        ..LoadOptions::reference()
    };
    Ok(Decoder::load(&config, &weights, &options)?)
}

/// Logits of all positions, formed whole in f32: fit for tiny models only.
///
/// # Shapes
/// ids u32 [B, T] -> f32 [B, T, V]
///
/// # Errors
/// Whatever the model crate or candle refuses.
pub fn dense_logits(decoder: &Decoder, ids: &Tensor) -> Result<Tensor> {
    let hidden = decoder.hidden_states(ids)?.to_dtype(DType::F32)?;
    let head = decoder.head()?.to_dtype(DType::F32)?;
    Ok(hidden.broadcast_matmul(&head.t()?)?)
}

/// The largest absolute difference of two tensors of one shape.
///
/// # Errors
/// When the shapes differ.
pub fn max_abs_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?)
}
