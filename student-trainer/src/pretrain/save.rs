//! Provides a trained model as a Hugging Face checkpoint: `model.safetensors` beside its `config.json`.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Tensor, Var};
use distill_model::CONFIG_BYTES_MAX;

use crate::{Result, files, model_files::FloatType};

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
    let mut config: serde_json::Map<String, serde_json::Value> =
        files::read_json(&path, CONFIG_BYTES_MAX)?;
    FloatType::of(dtype).set_in(&mut config);
    if parameters.iter().any(|(name, _)| name == HEAD) {
        config.insert("tie_word_embeddings".into(), false.into());
    }
    files::write_json(&path, &config)
}

pub(super) fn write_tensors(
    directory: &Path,
    tensors: HashMap<String, Tensor>,
    dtype: DType,
) -> Result<()> {
    let tensors = files::on_host(tensors)?
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.to_dtype(dtype)?)))
        .collect::<Result<Vec<(String, Tensor)>>>()?;
    files::write_tensors(&directory.join("model.safetensors"), tensors)
}
