//! Provides `config.json` from a GGUF file's metadata.

use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use serde_json::{Value, json};

use super::value;
use crate::{Error, Result};

/// transformers' class of each architecture.
const CLASSES: [(&str, &str); 2] = [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM")];

/// The object that `config.json` of the same model holds.
pub(super) fn config_json(content: &Content, path: &Path) -> Result<Value> {
    let wrong =
        |key: &str, e: candle_core::Error| Error::malformed(path, key, super::first_line(&e));
    let key = "general.architecture";
    let architecture = value(content, path, key)?
        .to_string()
        .map_err(|e| wrong(key, e))?;
    let known = CLASSES.iter().find(|(name, _)| name == architecture);
    let (name, class) = known.ok_or_else(|| {
        let names = CLASSES.map(|(name, _)| name).join(", ");
        Error::malformed(
            path,
            key,
            format!("is `{architecture}`; this build reads {names}"),
        )
    })?;
    let integer = |key: &str| -> Result<u64> {
        let key = format!("{name}.{key}");
        let found = value(content, path, &key)?;
        found.to_u64().map_err(|e| wrong(&key, e))
    };
    let float = |key: &str| -> Result<f64> {
        let key = format!("{name}.{key}");
        let found = value(content, path, &key)?;
        found.to_f32().map(f64::from).map_err(|e| wrong(&key, e))
    };
    let optional = |key: &str| {
        let found = content.metadata.get(key);
        found.and_then(|found| found.to_u64().ok())
    };
    for (key, what) in [
        (format!("{name}.rope.scaling.type"), "scaled rotary angles"),
        (format!("{name}.expert_count"), "experts"),
    ] {
        let used = content.metadata.get(&key).is_some_and(|found| {
            let none = found.to_string().is_ok_and(|kind| kind == "none");
            !none && !found.to_u64().is_ok_and(|count| count == 0)
        });
        if used {
            return Err(Error::malformed(
                path,
                &key,
                format!("asks for {what}, which this decoder does not do"),
            ));
        }
    }
    let embedding = content.tensor_infos.get("token_embd.weight");
    let rows = embedding.and_then(|info| info.shape.dims().first().copied());
    let heads = integer("attention.head_count")?;
    let hidden = integer("embedding_length")?;
    let head_dim = optional(&format!("{name}.attention.key_length"))
        .or_else(|| hidden.checked_div(heads))
        .unwrap_or(0);
    Ok(json!({
        "architectures": [class],
        "model_type": name,
        "vocab_size": rows.ok_or_else(|| Error::MissingTensor {
            path: path.to_owned(),
            tensor: "token_embd.weight".into(),
        })?,
        "hidden_size": hidden,
        "intermediate_size": integer("feed_forward_length")?,
        "num_hidden_layers": integer("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": integer("attention.head_count_kv").unwrap_or(heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": float("attention.layer_norm_rms_epsilon")?,
        "rope_theta": float("rope.freq_base").unwrap_or(10_000.0),
        "max_position_embeddings": integer("context_length")?,
        "tie_word_embeddings": !content.tensor_infos.contains_key("output.weight"),
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": optional("tokenizer.ggml.bos_token_id"),
        "eos_token_id": optional("tokenizer.ggml.eos_token_id"),
        "pad_token_id": optional("tokenizer.ggml.padding_token_id"),
    }))
}
