//! Provides the weights of an adapter on disk, under PEFT's names, and of the projections of hidden states beside them.

use std::path::Path;

use candle_core::{DType, Var};
use distill_model::Weights;

use super::{AdapterConfig, CONFIG_FILE, PROJECTION_FILE, WEIGHTS_FILE};
use crate::{
    Error, Result,
    files::{self, write_atomically, write_tensors},
    loss::HiddenProjection,
};

/// What PEFT wrote before safetensors, a pickle.
const PICKLE_FILE: &str = "adapter_model.bin";

/// Writes both files into `directory`, creating it.
///
/// Names are PEFT's: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
///
/// # Errors
/// The file system refuses; an earlier adapter is untouched then.
pub fn save_adapter(
    directory: &Path,
    config: &AdapterConfig,
    parameters: &[(String, Var)],
) -> Result<()> {
    files::create_directory(directory)?;
    let tensors = parameters.iter().map(|(name, var)| (name, var.as_tensor()));
    // What PEFT and transformers write; some readers insist on it.
    write_tensors(&directory.join(WEIGHTS_FILE), tensors)?;
    write_atomically(&directory.join(CONFIG_FILE), &config.to_json()?)
}

/// Writes the projections of hidden states beside an adapter; PEFT does not look at them.
///
/// # Errors
/// A tensor error, or a file that cannot be written.
pub fn save_projections(directory: &Path, projections: &[HiddenProjection]) -> Result<()> {
    let saved = projections.iter().flat_map(HiddenProjection::saved);
    let tensors = saved.map(|(name, var)| (name, var.into_inner()));
    write_tensors(&directory.join(PROJECTION_FILE), tensors)
}

/// Fills `parameters` with the values of a saved adapter, whatever float type it was saved in.
///
/// # Errors
/// A tensor that is missing, left over, not finite or of another shape, by name; nothing is changed then.
pub fn load_adapter(directory: &Path, parameters: &[(String, Var)]) -> Result<()> {
    let path = directory.join(WEIGHTS_FILE);
    let weights = open_weights(directory)?;
    let fault = |problem: String| Error::file(&path, problem);
    if parameters.is_empty() {
        return Err(fault(
            "adapter_config.json beside it chooses no linear of this model; check target_modules, exclude_modules and \
             layers_to_transform there"
                .into(),
        ));
    }
    let known = |name: &&str| parameters.iter().any(|(known, _)| known == name);
    if let Some(name) = weights.names().find(|name| !known(name)) {
        return Err(fault(format!(
            "tensor {name} has no place in the student: adapters belong on the linears of its layers, where adapter_config.json \
             names them"
        )));
    }
    let mut values = Vec::with_capacity(parameters.len());
    for (name, var) in parameters {
        let shape = weights.shape(name).map_err(|_| {
            fault(format!(
                "there is no tensor {name}; the base or target_modules differ"
            ))
        })?;
        if shape != var.dims() {
            return Err(fault(format!(
                "{name} has shape {shape:?}, the student needs {:?}",
                var.dims()
            )));
        }
        let value = weights.tensor(name, DType::F32, var.device())?;
        if !value.sqr()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
            return Err(fault(format!("{name} holds NaN or infinity")));
        }
        values.push((var, value));
    }
    for (var, value) in values {
        var.set(&value)?;
    }
    Ok(())
}

fn open_weights(directory: &Path) -> Result<Weights> {
    let path = directory.join(WEIGHTS_FILE);
    if !path.is_file() && directory.join(PICKLE_FILE).is_file() {
        return Err(Error::file(
            &directory.join(PICKLE_FILE),
            "is a pickle, which is not read; load the adapter with PEFT and save_pretrained it to get adapter_model.safetensors",
        ));
    }
    Ok(Weights::open_file(&path)?)
}
