//! Adapters with ranks and alphas of their own, and runs that continue where another one's adapter ended.

use super::*;
use crate::Error;

#[test]
fn a_run_continues_an_adapter_with_its_ranks_and_alphas() {
    let bench = Bench::new(4);
    let first = TrainConfig {
        epochs: 3,
        lora_rs: true,
        lora_alpha: 8.0,
        lora_rank_pattern: vec!["layers.1.*q_proj=2".into()],
        lora_alpha_pattern: vec!["up_proj=5".into()],
        ..bench.config("first")
    };
    let summary = train(&first).unwrap();
    let trained = AdapterConfig::read(&summary.adapter).unwrap();
    let lora = trained.lora();
    assert_eq!(lora.rank_of("model.layers.1.self_attn.q_proj").unwrap(), 2);
    assert_eq!(lora.scale_of("model.layers.0.mlp.up_proj").unwrap(), 2.5);

    // Another rank is asked for; the adapter's counts.
    let second = TrainConfig {
        steps: Some(3),
        lora_rank: 7,
        init_adapter: Some(summary.adapter.clone()),
        ..bench.config("second")
    };
    let continued = train(&second).unwrap();
    let loss = |config: &TrainConfig| metrics(config)[0]["loss"].as_f64().unwrap();
    // The same frames as the untrained adapter's first step had.
    let (fresh, continued_from) = (loss(&first), loss(&second));
    assert!(continued_from < 0.5 * fresh, "{continued_from} {fresh}");
    let written = AdapterConfig::read(&continued.adapter).unwrap();
    assert_eq!(written.lora(), lora);
    let a = |dir: &Path| {
        let path = dir.join("adapter_model.safetensors");
        let name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight";
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        tensors[name].to_vec2::<f32>().unwrap()
    };
    let (before, after) = (a(&summary.adapter), a(&continued.adapter));
    assert_eq!(before.len(), 2);
    assert_ne!(before, after);
}

#[test]
fn patterns_that_match_nothing_and_adapters_that_do_not_fit_stop_the_run() {
    let bench = Bench::new(2);
    let stopped = |config: &TrainConfig| -> String {
        let error: Error = train(config).unwrap_err();
        error.to_string()
    };
    let pattern = TrainConfig {
        lora_rank_pattern: vec!["layers.9.*=2".into()],
        ..bench.config("pattern")
    };
    let message = stopped(&pattern);
    assert!(
        message.contains("lora_rank_pattern: `layers.9.*`"),
        "{message}"
    );

    let adapter = bench.dir.path().join("adapter");
    let missing = TrainConfig {
        init_adapter: Some(adapter.clone()),
        ..bench.config("missing")
    };
    assert!(stopped(&missing).contains("adapter_config.json"));
    fs::create_dir(&adapter).unwrap();
    let json = r#"{"peft_type":"LORA","r":2,"target_modules":["q_proj"]}"#;
    fs::write(adapter.join("adapter_config.json"), json).unwrap();
    let no_weights = TrainConfig {
        out: bench.dir.path().join("no_weights"),
        ..missing
    };
    assert!(stopped(&no_weights).contains("adapter_model.safetensors"));
}

#[test]
fn adapters_are_not_continued_where_every_weight_is_trained() {
    let bench = Bench::new(1);
    let config = TrainConfig {
        tune: crate::config::Tune::Full,
        init_adapter: Some("adapter".into()),
        ..bench.config("full")
    };
    let message = train(&config).unwrap_err().to_string();
    assert!(message.starts_with("init_adapter:"), "{message}");
}
