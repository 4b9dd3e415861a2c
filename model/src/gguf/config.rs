//! Provides `config.json` from a GGUF file's metadata.

use std::path::Path;

use serde_json::json;

use super::header::Header;
use super::value::{Metadata, Value};
use super::window::window;
use crate::{Architecture, Error, Result};

/// What files are read and written of; those of Mistral's models say `llama`, most of them without their window.
pub(super) const READ: [Architecture; 3] = [
    Architecture::Llama,
    Architecture::Qwen2,
    Architecture::Qwen3,
];

/// Settings under the architecture's name that change the computation.
const NOT_DONE: [(&str, &str); 5] = [
    ("rope.scaling.type", "scaled rotary angles"),
    ("rope.scaling.factor", "scaled rotary angles"),
    ("rope.scale_linear", "scaled rotary angles"),
    (
        "attention.sliding_window_pattern",
        "attention to a window in some of its layers",
    ),
    ("expert_count", "experts"),
];

/// Whether a setting of [`NOT_DONE`] says that the thing is not used: none, 0, or a factor of 1.
fn is_off(found: &Value) -> bool {
    let none = found.text() == Some("none");
    let zero = found.unsigned() == Some(0);
    let one = found.float();
    none || zero || one.is_some_and(|factor| factor == 0.0 || factor == 1.0)
}

/// The object that `config.json` of the same model holds.
pub(super) fn config_json(header: &Header, path: &Path) -> Result<serde_json::Value> {
    let metadata = Metadata {
        values: &header.metadata,
        path,
    };
    let key = "general.architecture";
    let architecture = metadata.text(key)?;
    let known = READ.iter().find(|known| known.name() == architecture);
    let known = known.ok_or_else(|| {
        let names = READ.map(Architecture::name).join(", ");
        let problem = format!(
            "is `{architecture}`; this build reads {names}: take the model's own safetensors"
        );
        metadata.fault(key, problem)
    })?;
    let name = known.name();
    let integer = |key: &str| metadata.unsigned(&format!("{name}.{key}"));
    let float = |key: &str| metadata.float(&format!("{name}.{key}"));
    let has = |key: &str| metadata.get(&format!("{name}.{key}")).is_some();
    // Ids of special tokens; some converters write -1 for none.
    let token_id = |key: &str| {
        let found = metadata.get(&format!("tokenizer.ggml.{key}"));
        found.and_then(Value::unsigned)
    };
    for (key, what) in NOT_DONE {
        let key = format!("{name}.{key}");
        if metadata.get(&key).is_some_and(|found| !is_off(found)) {
            let problem =
                format!("asks for {what}, which this decoder does not do; take another model");
            return Err(metadata.fault(&key, problem));
        }
    }
    let rows = header.embedding_rows();
    let heads = integer("attention.head_count")?;
    let hidden = integer("embedding_length")?;
    let head_dim = match has("attention.key_length") {
        true => integer("attention.key_length")?,
        false => hidden.checked_div(heads).unwrap_or(0),
    };
    if has("rope.dimension_count") {
        let rotated = integer("rope.dimension_count")?;
        if rotated != head_dim {
            return Err(Error::malformed(
                path,
                format!("{name}.rope.dimension_count"),
                format!(
                    "turns {rotated} of a head's {head_dim} values; this decoder turns all, take another model"
                ),
            ));
        }
    }
    let key_value_heads = match has("attention.head_count_kv") {
        true => integer("attention.head_count_kv")?,
        false => heads,
    };
    let rope_theta = match has("rope.freq_base") {
        true => float("rope.freq_base")?,
        false => 10_000.0,
    };
    let context = integer("context_length")?;
    let window = window(&metadata, *known, context)?;
    let family = match window {
        Some(_) => Architecture::Mistral,
        None => *known,
    };
    let mut config = json!({
        "architectures": [family.class()],
        "model_type": family.name(),
        "vocab_size": rows.ok_or_else(|| Error::MissingTensor {
            path: path.to_owned(),
            tensor: "token_embd.weight".into(),
        })?,
        "hidden_size": hidden,
        "intermediate_size": integer("feed_forward_length")?,
        "num_hidden_layers": integer("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": float("attention.layer_norm_rms_epsilon")?,
        "rope_theta": rope_theta,
        "max_position_embeddings": context,
        "tie_word_embeddings": !header.tensors.contains_key("output.weight"),
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": token_id("bos_token_id"),
        "eos_token_id": token_id("eos_token_id"),
        "pad_token_id": token_id("padding_token_id"),
    });
    // What every file has without one is part of its fingerprint, so nothing is written there.
    if let Some(window) = window {
        config["sliding_window"] = window.into();
    }
    Ok(config)
}
