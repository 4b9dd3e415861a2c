/*! Provides the rotary factors of a GGUF file, `rope_freqs.weight`, as `rope_scaling` of `config.json`.

llama.cpp's converter does not store the parameters of Llama 3.1's scaling. It stores what they come to: one factor for every
frequency, 1 for short waves and up to 8 or 32 for long ones, in f32; and an angle is `position theta^(-2i/d) / factor_i`. In
transformers' words that is `longrope` with the same factors at every length and cosines and sines that are not scaled.
*/

use std::path::Path;

use serde_json::{Value, json};

use super::{header::Header, is_llama, tensors::StoredTensor};
use crate::{Error, ModelConfig, Result, weights::SourceFile};

/// llama.cpp's name of the factors.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// The factors of a `llama` file; llama.cpp's other models have none.
pub(super) fn find(
    header: &Header,
    path: &Path,
    file_bytes: u64,
    config: &ModelConfig,
) -> Result<Option<StoredTensor>> {
    if !is_llama(config) || !header.tensors.contains_key(FACTORS) {
        return Ok(None);
    }
    let shape = [config.head_dim / 2];
    StoredTensor::stored(header, path, file_bytes, FACTORS, &shape).map(Some)
}

/// What `rope_scaling` is with these factors.
///
/// # Errors
/// Another type than f32; a factor that is no positive number.
pub(super) fn scaling(
    stored: &StoredTensor,
    file: &SourceFile,
    path: &Path,
    config: &ModelConfig,
) -> Result<Value> {
    let factors = stored.f32_values(file, path)?;
    let usable = |factor: f32| factor.is_finite() && factor > 0.0;
    if let Some(pair) = factors.iter().position(|factor| !usable(*factor)) {
        let message = format!(
            "divides frequency {pair} of {} by {}, which is no positive number; the file is damaged, download it again",
            factors.len(),
            factors[pair]
        );
        return Err(Error::tensor(path, FACTORS, message));
    }
    Ok(json!({
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": config.max_position_embeddings,
    }))
}
