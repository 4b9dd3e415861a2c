//! Provides a trained model as a Hugging Face checkpoint: `model.safetensors` beside its `config.json`.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor, Var};
use distill_model::CONFIG_BYTES_MAX;

use crate::{Error, Result, model_files::FloatType, run::write_atomically};

/// The head, where it is trained by itself.
const HEAD: &str = "lm_head.weight";

/// Writes all parameters as `dtype`, and that type into `config.json`; there, too, that a head of its own is not tied, whatever
/// the model that training began with had said.
///
/// # Errors
/// The file system refuses; an earlier file is untouched then.
pub(crate) fn save_model(
    directory: &Path,
    parameters: &[(String, Var)],
    dtype: DType,
) -> Result<()> {
    let tensors = parameters
        .iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect();
    write_tensors(directory, tensors, dtype)?;
    let path = directory.join("config.json");
    let text = distill_files::read(&path, CONFIG_BYTES_MAX).map_err(Error::io("read", &path))?;
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&text).map_err(|e| Error::file(&path, e.to_string()))?;
    FloatType::of(dtype).set_in(&mut config);
    if parameters.iter().any(|(name, _)| name == HEAD) {
        config.insert("tie_word_embeddings".into(), false.into());
    }
    let text =
        serde_json::to_string_pretty(&config).map_err(|e| Error::file(&path, e.to_string()))?;
    write_atomically(&path, (text + "\n").as_bytes())
}

pub(super) fn write_tensors(
    directory: &Path,
    tensors: HashMap<String, Tensor>,
    dtype: DType,
) -> Result<()> {
    let tensors = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?.to_dtype(dtype)?)))
        .collect::<Result<Vec<(String, Tensor)>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(metadata))?;
    write_atomically(&directory.join("model.safetensors"), &bytes)
}
