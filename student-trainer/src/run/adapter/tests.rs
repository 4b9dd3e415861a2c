use std::fs;

use candle_core::{DType, Device, Tensor, Var};
use distill_model::{LoraConfig, LoraLayers, LoraModules, LoraPattern};

use super::*;
use crate::Result;

fn parameters(value: f32) -> Vec<(String, Var)> {
    let var = |shape: (usize, usize)| {
        let tensor = Tensor::full(value, shape, &Device::Cpu).unwrap();
        Var::from_tensor(&tensor).unwrap()
    };
    let prefix = "base_model.model.model.layers.0.self_attn.q_proj";
    vec![
        (format!("{prefix}.lora_A.weight"), var((2, 4))),
        (format!("{prefix}.lora_B.weight"), var((6, 2))),
    ]
}

#[test]
fn an_adapter_reads_back_with_names_shapes_and_values() {
    let dir = tempfile::tempdir().unwrap();
    let lora = LoraConfig {
        rank: 2,
        alpha: 4.0,
        targets: ["q_proj"].into_iter().collect(),
        ..LoraConfig::default()
    };
    let config = AdapterConfig::new(&lora, "/models/base");
    save_adapter(dir.path(), &config, &parameters(0.25)).unwrap();
    let read = AdapterConfig::read(dir.path()).unwrap();
    assert_eq!(read, config);
    assert_eq!(read.lora(), lora);

    let empty = parameters(0.0);
    load_adapter(dir.path(), &empty).unwrap();
    assert_eq!(empty[1].1.to_vec2::<f32>().unwrap(), [[0.25; 2]; 6]);

    let more = [parameters(0.0), vec![("other".into(), empty[0].1.clone())]].concat();
    let message = load_adapter(dir.path(), &more).unwrap_err().to_string();
    assert!(message.contains("no tensor other"), "{message}");
    // What is refused changes nothing.
    assert_eq!(more[0].1.to_vec2::<f32>().unwrap(), [[0.0; 4]; 2]);
    let message = load_adapter(dir.path(), &empty[..1])
        .unwrap_err()
        .to_string();
    assert!(message.contains("lora_B.weight has no place"), "{message}");
    // PEFT refuses it too; an adapter without a tensor would pass otherwise.
    let message = load_adapter(dir.path(), &[]).unwrap_err().to_string();
    assert!(message.contains("chooses no linear"), "{message}");
}

#[test]
fn sixteen_bit_adapters_are_read_and_damaged_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let write = |dtype: DType, value: f32| {
        let tensors: Vec<(String, Tensor)> = parameters(value)
            .into_iter()
            .map(|(name, var)| (name, var.to_dtype(dtype).unwrap()))
            .collect();
        let bytes = safetensors::serialize(tensors, None).unwrap();
        fs::write(dir.path().join(WEIGHTS_FILE), bytes).unwrap();
    };
    for dtype in [DType::F16, DType::BF16, DType::F64] {
        write(dtype, 0.5);
        let read = parameters(0.0);
        load_adapter(dir.path(), &read).unwrap();
        assert_eq!(
            read[0].1.to_vec2::<f32>().unwrap(),
            [[0.5; 4]; 2],
            "{dtype:?}"
        );
    }
    write(DType::BF16, f32::NAN);
    let message = load_adapter(dir.path(), &parameters(0.0))
        .unwrap_err()
        .to_string();
    assert!(message.contains("lora_A.weight holds NaN"), "{message}");
    write(DType::U8, 1.0);
    let message = load_adapter(dir.path(), &parameters(0.0))
        .unwrap_err()
        .to_string();
    assert!(message.contains("lora_A.weight"), "{message}");

    fs::write(
        dir.path().join(WEIGHTS_FILE),
        b"\xff\xff\xff\xff\xff\xff\xff\xff{",
    )
    .unwrap();
    let message = load_adapter(dir.path(), &parameters(0.0))
        .unwrap_err()
        .to_string();
    assert!(message.contains(WEIGHTS_FILE), "{message}");
    fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
    fs::write(dir.path().join("adapter_model.bin"), b"PK").unwrap();
    let message = load_adapter(dir.path(), &parameters(0.0))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("adapter_model.bin: is a pickle"),
        "{message}"
    );
}

fn read(json: &str) -> Result<AdapterConfig> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), json).unwrap();
    AdapterConfig::read(dir.path())
}

/// A configuration with one more key.
fn with(key: &str, value: &str) -> Result<AdapterConfig> {
    read(&format!(
        r#"{{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q_proj"],"{key}":{value}}}"#
    ))
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (key, value) in [
        ("use_dora", "true"),
        ("bias", r#""all""#),
        ("lora_bias", "true"),
        ("modules_to_save", r#"["lm_head"]"#),
        ("trainable_token_indices", "[1]"),
        ("fan_in_fan_out", "true"),
        ("target_parameters", r#"["experts"]"#),
        ("layer_replication", "[[0,1]]"),
        ("alora_invocation_tokens", "[7]"),
        ("use_qalora", "true"),
        ("megatron_config", r#"{"a":1}"#),
        ("peft_type", r#""IA3""#),
        ("init_lora_weights", r#""pissa_niter_4""#),
        ("init_lora_weights", r#""olora""#),
        ("rank_pattern", r#"{"q_proj":"a"}"#),
        ("rank_pattern", r#"{"q_proj":0}"#),
        ("rank_pattern", r#"{"(":4}"#),
        ("alpha_pattern", r#"{"q_proj":-1}"#),
        ("r", "0"),
        ("lora_alpha", "1e999"),
        ("target_modules", "[]"),
        ("target_modules", r#""(""#),
        ("target_modules", "null"),
        ("layers_pattern", r#""layers""#),
        ("layers_to_transform", "-1"),
    ] {
        let message = with(key, value).expect_err(key).to_string();
        assert!(message.contains(CONFIG_FILE), "{key}: {message}");
        // serde names the place in the text, the decoder's configuration its own option.
        let named = [key, "line 1", "lora.", "variant"];
        assert!(
            named.iter().any(|name| message.contains(name)),
            "{key}: {message}"
        );
    }
    let whole = r#"{"peft_type":"LORA","target_modules":"all-linear","layers_to_transform":[1]}"#;
    assert!(read(whole).is_err());
    assert!(read("[]").is_err() && read("").is_err());
}

#[test]
fn what_changes_nothing_is_tolerated() {
    for (key, value) in [
        ("bias", r#""none""#),
        ("lora_dropout", "0.05"),
        ("modules_to_save", "[]"),
        ("loftq_config", "{}"),
        ("eva_config", "null"),
        ("init_lora_weights", r#""gaussian""#),
        ("megatron_core", r#""megatron.core""#),
        ("inference_mode", "true"),
        ("rank_pattern", "null"),
        ("something_new", "null"),
        ("something_new", r#""on""#),
        ("layers_to_transform", "[]"),
    ] {
        let read = with(key, value).unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!(read.lora().rank, 4);
    }
    // PEFT's own defaults.
    let read = read(r#"{"peft_type":"LORA","target_modules":"ALL-linear"}"#).unwrap();
    let lora = read.lora();
    assert_eq!((lora.rank, lora.alpha), (8, 8.0));
    assert_eq!(lora.targets, LoraModules::AllLinear);
}

#[test]
fn every_choice_of_layers_and_ranks_survives_the_file() {
    let ending = |text| LoraPattern::ending("rank_pattern", text).unwrap();
    let lora = LoraConfig {
        rank: 3,
        alpha: 1.5,
        exclude: Some(["o_proj"].into_iter().collect()),
        layers: Some(LoraLayers {
            numbers: vec![0, 2],
            after: vec![LoraPattern::before_layer("layers_pattern", "layers").unwrap()],
        }),
        // Not in alphabetical order: the first that matches counts.
        rank_pattern: vec![(ending("v_proj"), 8), (ending(".*self_attn.*"), 2)],
        alpha_pattern: vec![(ending("q_proj"), 7.0)],
        rs_lora: true,
        ..LoraConfig::default()
    };
    let expression = LoraConfig {
        targets: LoraModules::Pattern(
            LoraPattern::whole("target_modules", r".*\.[qv]_proj").unwrap(),
        ),
        layers: None,
        ..lora.clone()
    };
    let all = LoraConfig {
        targets: LoraModules::AllLinear,
        ..expression.clone()
    };
    for lora in [lora, expression, all] {
        let mut config = AdapterConfig::new(&lora, "base");
        config.revision = Some("main".into());
        let json = String::from_utf8(config.to_json().unwrap()).unwrap();
        assert_eq!(read(&json).unwrap(), config);
    }
}
