//! Provides models whose weights are a formula instead of a file, for vocabularies too large to commit.
//!
//! The formula, and the same in Python, is in `tests/fixtures/make_models.py`: element i of a tensor is output i of
//! splitmix64 seeded with FNV-1a of the tensor's name, as a uniform number in [-1, 1) with an offset and a scale by name.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures;

/// What the Qwen2.5 tokenizer knows; head rows beyond it are padding.
pub const EFFECTIVE_VOCABULARY: usize = 151_665;

const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 64;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KEY_VALUE_HEADS: usize = 2;

/// A model directory whose tokenizer, the fixtures' with so many more tokens, knows `ids` ids; the head has a few rows more.
///
/// # Errors
/// When the fixture is broken or the temporary directory cannot be written.
pub fn with_tokenizer(ids: usize, tied: bool) -> Result<TempDir> {
    let directory = directory(ids.next_multiple_of(16), tied)?;
    let tokenizer = fixtures::path("tokenizer");
    let mut described: Value =
        serde_json::from_slice(&std::fs::read(tokenizer.join("tokenizer.json"))?)?;
    let added = described["added_tokens"]
        .as_array_mut()
        .context("added_tokens of the fixture")?;
    let last = added.last().and_then(|token| token["id"].as_u64());
    let known = usize::try_from(last.context("an id of the fixture")?)? + 1;
    added.extend((known..ids).map(|id| {
        json!({
            "id": id, "content": format!("<more {id}>"), "special": false, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    }));
    std::fs::write(
        directory.path().join("tokenizer.json"),
        described.to_string(),
    )?;
    for name in ["tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(tokenizer.join(name), directory.path().join(name))?;
    }
    Ok(directory)
}

/// A `qwen2` directory (config.json, model.safetensors in f32) with this many head rows.
///
/// # Errors
/// When the temporary directory cannot be written.
pub fn directory(head_rows: usize, tied: bool) -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": head_rows,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
    });
    std::fs::write(directory.path().join("config.json"), config.to_string())?;
    write_weights(&directory.path().join("model.safetensors"), head_rows, tied)?;
    Ok(directory)
}

fn write_weights(file: &Path, head_rows: usize, tied: bool) -> Result<()> {
    let key_value = HIDDEN / HEADS * KEY_VALUE_HEADS;
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![head_rows, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
    ];
    if !tied {
        shapes.push(("lm_head.weight".into(), vec![head_rows, HIDDEN]));
    }
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()))
        };
        for (name, rows) in [("q", HIDDEN), ("k", key_value), ("v", key_value)] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, HIDDEN]);
            add(&format!("self_attn.{name}_proj.bias"), &[rows]);
        }
        add("self_attn.o_proj.weight", &[HIDDEN, HIDDEN]);
        add("mlp.gate_proj.weight", &[INTERMEDIATE, HIDDEN]);
        add("mlp.up_proj.weight", &[INTERMEDIATE, HIDDEN]);
        add("mlp.down_proj.weight", &[HIDDEN, INTERMEDIATE]);
        add("input_layernorm.weight", &[HIDDEN]);
        add("post_attention_layernorm.weight", &[HIDDEN]);
    }
    let tensors = shapes
        .into_iter()
        .map(|(name, shape)| {
            let tensor = Tensor::from_vec(values(&name, &shape), shape, &Device::Cpu)?;
            Ok((name, tensor))
        })
        .collect::<Result<HashMap<_, _>>>()?;
    Ok(candle_core::safetensors::save(&tensors, file)?)
}

/// The elements of tensor `name`, row-major.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let vocabulary = name.ends_with("embed_tokens.weight") || name.ends_with("lm_head.weight");
    let sharp = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
    let (offset, scale) = match name.ends_with("norm.weight") {
        true => (1.0, 0.25),
        false if vocabulary || sharp => (0.0, 0.5),
        false => (0.0, 0.25),
    };
    let padding_from = if vocabulary {
        EFFECTIVE_VOCABULARY * HIDDEN
    } else {
        usize::MAX
    };
    let seed = fnv1a64(name);
    (0..shape.iter().product())
        .map(|i| {
            let unit = (splitmix64(seed, i as u64) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
            let value = offset + scale * unit;
            if i >= padding_from {
                2.0 * value
            } else {
                value
            }
        })
        .collect()
}

/// FNV-1a, 64 bits, of the text's bytes.
fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    })
}

/// Output `index`, from 0, of splitmix64 with this seed.
fn splitmix64(seed: u64, index: u64) -> u64 {
    let z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generator_gives_the_published_values() {
        // splitmix64 from seed 1234567 and FNV-1a of "a", as their authors publish them.
        assert_eq!(splitmix64(1_234_567, 0), 6_457_827_717_110_365_317);
        assert_eq!(splitmix64(1_234_567, 1), 3_203_168_211_198_807_973);
        assert_eq!(fnv1a64("a"), 0xAF63_DC4C_8601_EC8C);
    }
}
