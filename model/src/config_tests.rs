//! Tests of what `config.json` may say.

use super::*;
use serde_json::{Value, json};

fn parse(json: &Value) -> Result<ModelConfig> {
    ModelConfig::parse(json.to_string().as_bytes(), Path::new("m/config.json"))
}

/// Qwen2.5-0.5B as transformers 5 writes it.
fn qwen() -> Value {
    json!({
        "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"},
        "sliding_window": null, "use_sliding_window": false, "tie_word_embeddings": true,
        "layer_types": ["full_attention"],
    })
}

fn with(mut json: Value, field: &str, value: Value) -> Value {
    json[field] = value;
    json
}

#[track_caller]
fn refused(json: &Value, parts: &[&str]) {
    let message = parse(json).unwrap_err().to_string();
    for part in [&["m/config.json"], parts].concat() {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn qwen2_has_biases_on_q_k_and_v_only() {
    let config = parse(&qwen()).unwrap();
    assert_eq!(config.head_dim, 64);
    assert_eq!(config.rope_theta, 1e6);
    assert_eq!((config.query_size(), config.key_value_size()), (896, 128));
    assert!(config.qkv_bias && !config.output_bias && !config.mlp_bias);
    assert!(config.tie_word_embeddings);
}

#[test]
fn llama_has_biases_where_the_config_says_so() {
    let llama = with(qwen(), "model_type", json!("llama"));
    let config = parse(&llama).unwrap();
    assert!(!config.qkv_bias && !config.output_bias && !config.mlp_bias);
    let config = parse(&with(llama, "attention_bias", json!(true))).unwrap();
    assert!(config.qkv_bias && config.output_bias && !config.mlp_bias);
}

#[test]
fn rope_theta_is_found_in_every_place_it_has_been_written() {
    let theta = |json: &Value| parse(json).unwrap().rope_theta;
    let bare = with(qwen(), "rope_parameters", Value::Null);
    assert_eq!(theta(&bare), 10_000.0);
    assert_eq!(theta(&with(bare.clone(), "rope_theta", json!(5e5))), 5e5);
    let scaling = json!({"type": "default", "rope_theta": 2e4});
    assert_eq!(theta(&with(bare, "rope_scaling", scaling)), 2e4);
}

#[test]
fn a_head_dim_need_not_divide_the_hidden_size() {
    let config = parse(&with(qwen(), "head_dim", json!(128))).unwrap();
    assert_eq!(config.query_size(), 14 * 128);
}

#[test]
fn what_is_unsupported_is_refused_by_name() {
    refused(
        &with(qwen(), "model_type", json!("gpt2")),
        &["gpt2", "qwen2", "llama"],
    );
    refused(
        &with(qwen(), "hidden_act", json!("gelu")),
        &["hidden_act", "gelu", "silu"],
    );
    let scaling = json!({"rope_type": "yarn", "factor": 4.0});
    refused(
        &with(qwen(), "rope_scaling", scaling),
        &["rope_scaling", "yarn", "default"],
    );
    let partial = json!({"rope_theta": 1e4, "partial_rotary_factor": 0.5});
    refused(
        &with(qwen(), "rope_parameters", partial),
        &["rope_parameters", "0.5"],
    );
    let layers = json!(["full_attention", "sliding_attention"]);
    refused(
        &with(qwen(), "layer_types", layers),
        &["layer_types", "sliding_attention"],
    );
}

#[test]
fn a_sliding_window_is_refused_only_where_a_layer_uses_it() {
    let mut json = with(qwen(), "layer_types", Value::Null);
    json["sliding_window"] = json!(4096);
    assert!(parse(&json).is_ok());
    json["use_sliding_window"] = json!(true);
    // Qwen2's default: from layer 28 on, and this model has 24.
    assert!(parse(&json).is_ok());
    json["max_window_layers"] = json!(20);
    refused(&json, &["use_sliding_window", "4096", "layers 20 to 23"]);
}

#[test]
fn hostile_numbers_are_refused_by_field() {
    let fields = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ];
    for field in fields {
        for value in [json!(0), json!(u64::MAX), json!(u64::from(u32::MAX))] {
            refused(&with(qwen(), field, value), &[field]);
        }
        for value in [json!(-1), json!(1.5), json!("x"), json!([])] {
            assert!(parse(&with(qwen(), field, value)).is_err());
        }
    }
    for value in [0.0, -1.0, 1e300] {
        refused(
            &with(qwen(), "rms_norm_eps", json!(value)),
            &["rms_norm_eps"],
        );
        let rope = json!({"rope_theta": value});
        refused(&with(qwen(), "rope_parameters", rope), &["rope_theta"]);
    }
    refused(
        &with(qwen(), "num_key_value_heads", json!(3)),
        &["num_key_value_heads", "14"],
    );
    refused(&with(qwen(), "hidden_size", json!(897)), &["897", "14"]);
    refused(&with(qwen(), "head_dim", json!(63)), &["head_dim", "63"]);
    refused(
        &with(qwen(), "vocab_size", Value::Null),
        &["vocab_size", "missing"],
    );
    refused(&json!([]), &[]);
    assert!(ModelConfig::parse(b"{", Path::new("m/config.json")).is_err());
}

#[test]
fn a_missing_or_huge_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let load = || ModelConfig::load(dir.path()).unwrap_err().to_string();
    assert!(load().contains("config.json"));
    let file = std::fs::File::create(dir.path().join("config.json")).unwrap();
    file.set_len(CONFIG_BYTES_MAX + 1).unwrap();
    assert!(load().contains("file size"));
}
