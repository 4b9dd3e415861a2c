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
        "layer_types": vec!["full_attention"; 24],
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
        &["rope_scaling", "yarn", "default, linear, llama3"],
    );
    let partial = json!({"rope_theta": 1e4, "partial_rotary_factor": 0.5});
    refused(
        &with(qwen(), "rope_parameters", partial),
        &["rope_parameters", "0.5"],
    );
    let layers = json!(vec!["chunked_attention"; 24]);
    refused(
        &with(qwen(), "layer_types", layers),
        &["layer_types", "chunked_attention", "sliding_attention"],
    );
}

#[test]
fn only_the_layers_that_use_a_window_have_one() {
    let full = vec![None; 24];
    let windows = |json: &Value| parse(json).unwrap().windows;
    let mut json = with(qwen(), "layer_types", Value::Null);
    json["sliding_window"] = json!(4096);
    assert_eq!(windows(&json), full);
    json["use_sliding_window"] = json!(true);
    // Qwen's default: from layer 28 on, and this model has 24.
    assert_eq!(windows(&json), full);
    json["max_window_layers"] = json!(20);
    let last_four = [vec![None; 20], vec![Some(4096); 4]].concat();
    assert_eq!(windows(&json), last_four);
    // What transformers 5 writes beside it says the same.
    let types = [vec!["full_attention"; 20], vec!["sliding_attention"; 4]].concat();
    json["max_window_layers"] = json!(3);
    json["layer_types"] = json!(types);
    assert_eq!(windows(&json), last_four);
    json["layer_types"] = json!(types[1..]);
    refused(&json, &["layer_types", "23", "24"]);
    json["layer_types"] = json!(types);
    json["use_sliding_window"] = json!(false);
    refused(
        &json,
        &["layer_types", "sliding_attention", "use_sliding_window"],
    );
    // Llama's code has no window.
    assert_eq!(windows(&with(json, "model_type", json!("llama"))), full);
}

#[test]
fn mistral_has_a_window_unless_the_config_says_null() {
    let mut mistral = with(qwen(), "model_type", json!("mistral"));
    let windows = |json: &Value| parse(json).unwrap().windows;
    assert_eq!(windows(&mistral), vec![None; 24]);
    mistral["sliding_window"] = json!(1024);
    assert_eq!(windows(&mistral), vec![Some(1024); 24]);
    mistral.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(windows(&mistral), vec![Some(4096); 24]);
    mistral["sliding_window"] = json!(0);
    refused(&mistral, &["sliding_window", "0"]);
    mistral["sliding_window"] = Value::Null;
    mistral["attention_bias"] = json!(true);
    let config = parse(&mistral).unwrap();
    assert!(!config.qkv_bias && !config.output_bias && !config.qk_norm);
}

#[test]
fn qwen3_norms_its_heads_and_has_its_own_head_dim() {
    let config = parse(&with(qwen(), "model_type", json!("qwen3"))).unwrap();
    assert!(config.qk_norm && !config.qkv_bias && !config.output_bias);
    assert_eq!(config.head_dim, 128);
    let shapes = config.parameter_shapes();
    let norms = shapes
        .iter()
        .filter(|(name, _)| name.ends_with("self_attn.q_norm.weight"));
    assert!(norms.clone().all(|(_, shape)| *shape == [128]));
    assert_eq!(norms.count(), 24);
    let plain = parse(&qwen()).unwrap().parameter_shapes();
    assert!(plain.iter().all(|(name, _)| !name.contains("q_norm")));
}

#[test]
fn rope_scaling_is_read_in_both_spellings() {
    let llama3 = |kind: &str| {
        json!({kind: "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 5e5})
    };
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let bare = with(qwen(), "rope_parameters", Value::Null);
    for (field, kind) in [
        ("rope_scaling", "type"),
        ("rope_scaling", "rope_type"),
        ("rope_parameters", "rope_type"),
    ] {
        let config = parse(&with(bare.clone(), field, llama3(kind))).unwrap();
        assert_eq!((&config.rope_scaling, config.rope_theta), (&expected, 5e5));
    }
    let linear = json!({"type": "linear", "factor": 2});
    let config = parse(&with(bare.clone(), "rope_scaling", linear)).unwrap();
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(parse(&bare).unwrap().rope_scaling, RopeScaling::None);
}

#[test]
fn rope_scaling_that_cannot_be_is_refused_by_name() {
    let refuse = |rope: Value, parts: &[&str]| {
        refused(
            &with(qwen(), "rope_parameters", rope),
            &[&["rope_parameters"], parts].concat(),
        );
    };
    for kind in ["yarn", "dynamic", "su", "mrope"] {
        refuse(json!({"rope_type": kind, "factor": 2.0}), &[kind, "llama3"]);
    }
    refuse(json!({"rope_type": "linear"}), &["linear", "factor"]);
    for factor in [0.0, 0.5, -1.0, 1e300] {
        refuse(
            json!({"rope_type": "linear", "factor": factor}),
            &["factor"],
        );
    }
    let mut llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0});
    refuse(llama3.clone(), &["high_freq_factor", "low_freq_factor"]);
    llama3["low_freq_factor"] = json!(1.0);
    // transformers falls back to max_position_embeddings.
    assert!(parse(&with(qwen(), "rope_parameters", llama3.clone())).is_ok());
    llama3["original_max_position_embeddings"] = json!(0);
    refuse(llama3, &["original_max_position_embeddings"]);
}

#[test]
fn longrope_is_done_where_its_factors_hold_at_every_length() {
    let pairs = parse(&qwen()).unwrap().head_dim / 2;
    let factors: Vec<f64> = (0..pairs).map(|pair| 1.0 + pair as f64).collect();
    let rope = json!({"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0,
        "original_max_position_embeddings": 64});
    let config = parse(&with(qwen(), "rope_parameters", rope.clone())).unwrap();
    assert_eq!(config.rope_scaling, RopeScaling::LongRope { factors });
    for (key, value, expected) in [
        ("long_factor", json!(vec![2.0; pairs]), "differ"),
        ("long_factor", Value::Null, "without short_factor"),
        ("attention_factor", json!(1.2), "attention_factor"),
        ("attention_factor", Value::Null, "attention_factor"),
    ] {
        let mut rope = rope.clone();
        rope[key] = value;
        refused(
            &with(qwen(), "rope_parameters", rope),
            &["rope_parameters", expected],
        );
    }
    for (factors, expected) in [
        (vec![1.0; pairs + 1], "pairs of a head"),
        (vec![0.0; pairs], "short_factor"),
        (vec![-1.0; pairs], "short_factor"),
        (vec![1e300; pairs], "short_factor"),
    ] {
        let mut rope = rope.clone();
        rope["short_factor"] = json!(factors);
        rope["long_factor"] = json!(factors);
        refused(
            &with(qwen(), "rope_parameters", rope),
            &["rope_parameters", expected],
        );
    }
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
    assert!(load().contains("more than the"));
}

#[test]
fn smollm3_leaves_some_layers_unturned() {
    let mut smollm3 = with(qwen(), "model_type", json!("smollm3"));
    let turned = |json: &Value| parse(json).unwrap().turned;
    let every_fourth: Vec<bool> = (1..=24).map(|layer| layer % 4 != 0).collect();
    assert_eq!(turned(&smollm3), every_fourth);
    assert_eq!(turned(&qwen()), vec![true; 24]);
    smollm3["no_rope_layer_interval"] = json!(0);
    refused(&smollm3, &["no_rope_layer_interval"]);
    // Longer lists are allowed, shorter ones are not.
    smollm3["no_rope_layers"] = json!([vec![1; 23], vec![0; 9]].concat());
    assert_eq!(turned(&smollm3), [vec![true; 23], vec![false]].concat());
    smollm3["use_sliding_window"] = json!(true);
    smollm3["sliding_window"] = json!(64);
    smollm3["layer_types"] = Value::Null;
    let windows = parse(&smollm3).unwrap().windows;
    assert_eq!(windows, [vec![None; 23], vec![Some(64)]].concat());
    smollm3["no_rope_layers"] = json!([1, 0]);
    refused(&smollm3, &["no_rope_layers", "2", "24"]);
}

fn teacher(json: &Value) -> crate::Result<ModelConfig> {
    ModelConfig::parse_teacher(json.to_string().as_bytes(), Path::new("m/config.json"))
}

#[test]
fn experts_are_counted_in_both_spellings() {
    let moe = with(qwen(), "model_type", json!("qwen3_moe"));
    let experts = |json: &Value| teacher(json).unwrap().experts.unwrap();
    assert_eq!(
        experts(&moe),
        Experts {
            num_experts: 128,
            num_experts_per_tok: 8,
            moe_intermediate_size: 768,
            norm_topk_prob: false,
            decoder_sparse_step: 1,
        }
    );
    // transformers takes the stream's share here, where Qwen3 has a default.
    assert_eq!(teacher(&moe).unwrap().head_dim, 64);
    for field in ["num_experts", "num_local_experts"] {
        let few = with(moe.clone(), field, json!(10));
        assert_eq!(experts(&few).num_experts, 10);
    }
    let mut sparse = with(moe, "decoder_sparse_step", json!(2));
    sparse["norm_topk_prob"] = json!(true);
    let config = teacher(&sparse).unwrap();
    assert!(config.experts.unwrap().norm_topk_prob && config.qk_norm && !config.qkv_bias);
    let shapes = config.parameter_shapes();
    let of_layer = |layer: usize| {
        let prefix = format!("model.layers.{layer}.mlp.");
        let elements = shapes.iter().filter(|(name, _)| name.starts_with(&prefix));
        elements.fold((0, 0), |(count, sum), (_, shape)| {
            (count + 1, sum + shape.iter().product::<usize>())
        })
    };
    assert_eq!(of_layer(0), (3, 3 * 896 * 4864));
    assert_eq!(of_layer(1), (1 + 3 * 128, 128 * 896 + 128 * 3 * 896 * 768));
}

#[test]
fn what_experts_are_not_done_with_is_refused_by_field() {
    let moe = with(qwen(), "model_type", json!("qwen3_moe"));
    assert!(teacher(&moe).is_ok() && parse(&moe).is_err());
    for (field, value, part) in [
        ("mlp_only_layers", json!([3]), "decoder_sparse_step"),
        ("use_sliding_window", json!(true), "qwen3_moe"),
        ("num_experts", json!(0), "0"),
        ("num_experts", json!(5000), "4096"),
        ("num_experts_per_tok", json!(129), "128"),
        ("moe_intermediate_size", json!(0), "0"),
        ("decoder_sparse_step", json!(0), "0"),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 2.0}),
            "qwen3_moe",
        ),
        (
            "rope_scaling",
            json!({"type": "yarn", "factor": 4.0}),
            "yarn",
        ),
        (
            "layer_types",
            json!(vec!["sliding_attention"; 24]),
            "use_sliding_window",
        ),
        ("hidden_act", json!("gelu"), "silu"),
    ] {
        let message = teacher(&with(moe.clone(), field, value))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(field) && message.contains(part),
            "{message}"
        );
    }
    // Each number alone is fine; the list of matrices would take gigabytes.
    let many = with(
        with(moe.clone(), "num_experts", json!(4096)),
        "num_hidden_layers",
        json!(1024),
    );
    let message = teacher(&many).unwrap_err().to_string();
    assert!(
        message.contains("num_experts: 4096 in every layer"),
        "{message}"
    );
    let mut two = with(moe, "num_experts", json!(4));
    two["num_local_experts"] = json!(8);
    let message = teacher(&two).unwrap_err().to_string();
    assert!(message.contains("num_local_experts = 8"), "{message}");
}

#[test]
fn what_a_config_leaves_out_is_its_family_s_default() {
    let mut json = qwen();
    for field in [
        "rope_parameters",
        "rms_norm_eps",
        "tie_word_embeddings",
        "max_position_embeddings",
    ] {
        json[field] = Value::Null;
    }
    for (family, theta, eps, tied, positions) in [
        ("qwen2", 1e4, 1e-6, false, 32_768),
        ("qwen3", 1e4, 1e-6, false, 32_768),
        ("llama", 1e4, 1e-6, false, 2_048),
        ("mistral", 1e4, 1e-6, false, 131_072),
        ("phi3", 1e4, 1e-5, false, 4_096),
        ("smollm3", 2e6, 1e-6, true, 32_768),
    ] {
        let config = parse(&with(json.clone(), "model_type", json!(family))).unwrap();
        let found = (
            config.rope_theta,
            config.rms_norm_eps,
            config.tie_word_embeddings,
        );
        assert_eq!(found, (theta, eps, tied), "{family}");
        assert_eq!(config.max_position_embeddings, positions, "{family}");
    }
}
