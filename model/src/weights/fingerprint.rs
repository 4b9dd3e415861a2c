//! Provides the model fingerprint: one digest over what a forward pass depends on, config.json and every tensor.

use super::Weights;
use crate::{Gguf, Result};
use serde_json::Value;

/// Names the definition below; a change of it changes every fingerprint.
const DOMAIN: &[u8] = b"ot-distill model fingerprint v1";

/// Top-level keys that no forward pass reads and that differ between saves of the same model. `dtype` (`torch_dtype` before
/// transformers 5) repeats what the tensors' own types say, which are hashed. Keys that begin with `_` are provenance too.
const VOLATILE_KEYS: [&str; 4] = ["transformers_version", "dtype", "torch_dtype", "use_cache"];

/// BLAKE3 over, each preceded by its length as u64 little-endian: the domain, the canonical config (empty without
/// config.json), and for every tensor in name order its name, type, shape and the digests of its 4 MiB segments.
pub(super) fn fingerprint(weights: &Weights) -> Result<[u8; 32]> {
    // What is computed, and not what the file says.
    let config = weights.config_json()?;
    let config = config.map(|config| weights.settled_json(config));
    let mut hasher = begin(config.map(canonical_config));
    for (name, (file, info)) in &weights.tensors {
        let segments = file.fingerprint(name, &info.bytes)?;
        let dtype = info.dtype.to_string();
        add_tensor(&mut hasher, name, &dtype, &info.shape, &segments);
    }
    Ok(*hasher.finalize().as_bytes())
}

/// The same of a GGUF file: the config that its metadata means, and its tensors by their Hugging Face names, with ggml's names
/// of their types and their bytes as they are stored.
pub(super) fn of_gguf(gguf: &Gguf) -> Result<[u8; 32]> {
    let mut hasher = begin(Some(canonical_config(gguf.config_json().clone())));
    for name in gguf.names() {
        let segments = gguf.file().fingerprint(name, &gguf.extent(name)?)?;
        let (kind, shape) = (gguf.type_name(name)?, gguf.shape(name)?);
        add_tensor(&mut hasher, name, kind, shape, &segments);
    }
    Ok(*hasher.finalize().as_bytes())
}

fn begin(config: Option<String>) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    update(&mut hasher, DOMAIN);
    update(&mut hasher, config.unwrap_or_default().as_bytes());
    hasher
}

fn add_tensor(
    hasher: &mut blake3::Hasher,
    name: &str,
    dtype: &str,
    shape: &[usize],
    segments: &[[u8; 32]],
) {
    update(hasher, name.as_bytes());
    update(hasher, dtype.as_bytes());
    let shape = shape.iter().flat_map(|d| (*d as u64).to_le_bytes());
    update(hasher, &shape.collect::<Vec<u8>>());
    update(hasher, segments.as_flattened());
}

fn update(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// The config without volatile keys, keys sorted, no white space, integral numbers without a fraction.
fn canonical_config(mut config: Value) -> String {
    if let Value::Object(fields) = &mut config {
        fields.retain(|key, _| !key.starts_with('_') && !VOLATILE_KEYS.contains(&key.as_str()));
    }
    canonicalise(&mut config);
    config.to_string()
}

fn canonicalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.sort_keys();
            fields.values_mut().for_each(canonicalise);
        }
        Value::Array(items) => items.iter_mut().for_each(canonicalise),
        // 1000000 and 1000000.0 are the same rope_theta; beyond 2^53 an f64 is no longer exact.
        Value::Number(number) => {
            if let Some(float) = number.as_f64()
                && number.is_f64()
                && float.fract() == 0.0
                && float.abs() < 9e15
                && let Ok(whole) = format!("{float:.0}").parse::<i64>()
            {
                *value = Value::from(whole);
            }
        }
        _ => {}
    }
}
