//! A head of its own under a config.json that ties it: in everything that writes models, and in the plan.

use std::{fs, path::Path};

use candle_core::{Device, Tensor};
use distill_model::{Decoder, LoadOptions, ModelConfig, Weights, testing::TinyModel};
use serde_json::json;

use crate::{
    config::ComputeDtype,
    export::{self, ExportConfig},
    plan::{Counts, Shape},
    pretrain::save_model,
    quantize::{self, QuantizeConfig, StoredAs},
    shutdown::Shutdown,
    test_models::{config_json, set_in_config, write_student},
};

/// A model whose config.json says `tied`, with a head of its own in its weights.
fn write_source(dir: &Path, tied: bool) {
    write_student(dir, TinyModel::qwen2(), 40);
    set_in_config(dir, "tie_word_embeddings", tied.into());
}

fn logits(dir: &Path) -> Vec<f32> {
    let (config, weights) = (ModelConfig::load(dir), Weights::open(dir));
    let options = LoadOptions::reference();
    let decoder = Decoder::load(&config.unwrap(), &weights.unwrap(), &options).unwrap();
    let ids = Tensor::new(&[[3_u32, 1, 4, 1, 5]], &Device::Cpu).unwrap();
    let hidden = decoder.hidden_states(&ids).unwrap();
    let head = decoder.head().unwrap().t().unwrap();
    let logits = hidden.broadcast_matmul(&head).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn whatever_writes_a_model_dropped_a_head_that_config_ties() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_source(&path("tied"), true);
    write_source(&path("untied"), false);
    for weights in [StoredAs::FourBit, StoredAs::Bf16, StoredAs::F32] {
        let written = |from: &str| {
            let config = QuantizeConfig {
                from: path(from),
                out: path(&format!("{from}-{weights:?}")),
                weights,
                ..QuantizeConfig::default()
            };
            quantize::run(&config, &Shutdown::default()).unwrap();
            assert_eq!(config_json(&config.out)["tie_word_embeddings"], false);
            logits(&config.out)
        };
        assert_eq!(written("tied"), written("untied"), "{weights:?}");
    }
    // From a 4-bit checkpoint, too, that says so of itself.
    let four_bit = path("tied-FourBit");
    set_in_config(&four_bit, "tie_word_embeddings", true.into());
    for base in ["tied", "tied-FourBit"] {
        let config = ExportConfig {
            base: path(base),
            out: path(&format!("{base}-exported")),
            dtype: ComputeDtype::F32,
            ..ExportConfig::default()
        };
        export::run(&config, &Shutdown::default()).unwrap();
        assert_eq!(logits(&config.out), logits(&config.base), "{base}");
        assert_eq!(config_json(&config.out)["tie_word_embeddings"], false);
    }
}

#[test]
fn a_plan_counts_the_head_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let count = |name: &str, tied: bool| {
        let path = dir.path().join(name);
        write_source(&path, tied);
        let from_file = Shape::open(&path.join("config.json")).unwrap();
        assert_eq!(from_file.model, Shape::open(&path).unwrap().model);
        Counts::new(&from_file.model, None).unwrap()
    };
    let (tied, untied) = (count("tied", true), count("untied", false));
    assert_eq!(tied, untied);
    assert_eq!(tied.head, 40 * 64);
    // Without weights config.json is all there is.
    let path = dir.path().join("tied");
    fs::remove_file(path.join("model.safetensors")).unwrap();
    let counts = Counts::new(&Shape::open(&path).unwrap().model, None).unwrap();
    assert_eq!(counts.head, 0);
}

#[test]
fn a_trained_head_was_saved_beside_a_config_that_ties_it() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    write_source(&source, true);
    // What transformers 5 writes; it goes before torch_dtype where both are there.
    set_in_config(&source, "dtype", "bfloat16".into());
    let options = LoadOptions {
        base: distill_model::Base::Trainable,
        ..LoadOptions::reference()
    };
    let (shape, weights) = (ModelConfig::load(&source), Weights::open(&source));
    let decoder = Decoder::load(&shape.unwrap(), &weights.unwrap(), &options).unwrap();
    save_model(&source, &decoder.parameters(), candle_core::DType::F32).unwrap();
    let config = config_json(&source);
    assert_eq!(config["tie_word_embeddings"], false);
    assert_eq!(
        (config.get("dtype"), &config["torch_dtype"]),
        (None, &json!("float32"))
    );
}
