use std::{fs, path::Path};

use candle_core::{DType, Device, Var};
use distill_model::{
    Base, Decoder, Gradients, LoadOptions, ModelConfig, Weights,
    testing::{TinyModel, write_tiny_model},
};
use distill_text::Sequence;

use super::*;
use crate::test_models::logged;

const WORDS: usize = 32;

/// A tokenizer of one token a word and a text in which every word decides the next.
fn write_inputs(dir: &Path, tie_word_embeddings: bool) {
    let model = TinyModel {
        vocab_size: WORDS + 8,
        num_hidden_layers: 2,
        tie_word_embeddings,
        ..TinyModel::qwen2()
    };
    write_tiny_model(dir, &model, 3).unwrap();
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..WORDS).map(|id| (format!("t{id}"), id.into())).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    });
    fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    let line = |start: usize| {
        let words: Vec<String> = (0..12 + start % 5)
            .map(|i| format!("t{}", (start + 7 * i) % WORDS))
            .collect();
        serde_json::json!({ "text": words.join(" ") }).to_string()
    };
    let lines: Vec<String> = (0..64).map(line).collect();
    fs::write(dir.join("train.jsonl"), lines.join("\n")).unwrap();
}

fn config(dir: &Path) -> PretrainConfig {
    PretrainConfig {
        model_config: Some(dir.join("config.json")),
        tokenizer: Some(dir.to_owned()),
        data: vec![dir.join("train.jsonl")],
        out: dir.join("run"),
        batch_size: 8,
        epochs: 15,
        lr: 1e-2,
        device: "cpu".into(),
        ..PretrainConfig::default()
    }
}

#[test]
fn a_model_from_random_weights_learns_and_is_a_checkpoint() {
    for tied in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        write_inputs(dir.path(), tied);
        let config = PretrainConfig {
            save_dtype: ComputeDtype::Bf16,
            ..config(dir.path())
        };
        let summary = run(&config, &Shutdown::default()).unwrap();
        assert_eq!((summary.steps, summary.interrupted), (120, false));
        // The next word is certain; chance is ln 32 = 3.5.
        assert!(summary.ce < 0.2, "{}", summary.ce);
        let shape = ModelConfig::load(&summary.model).unwrap();
        let weights = Weights::open(&summary.model).unwrap();
        Decoder::load(&shape, &weights, &LoadOptions::reference()).unwrap();
        assert_eq!(weights.names().count(), shape.parameter_shapes().len());
        assert!(summary.model.join("tokenizer.json").is_file());

        // It can be gone on from.
        let again = PretrainConfig {
            model_config: None,
            tokenizer: None,
            from: Some(summary.model),
            out: dir.path().join("again"),
            steps: Some(1),
            ..config
        };
        assert!(run(&again, &Shutdown::default()).unwrap().ce < 0.3);
    }
}

#[test]
fn a_stopped_run_is_not_whole_unless_its_last_step_is_done() {
    let dir = tempfile::tempdir().unwrap();
    write_inputs(dir.path(), true);
    let stop = Shutdown::default();
    stop.request();
    for (steps, interrupted) in [(3, true), (1, false)] {
        let config = PretrainConfig {
            steps: Some(steps),
            out: dir.path().join(format!("run-{steps}")),
            ..config(dir.path())
        };
        let mut summary = None;
        let log = logged(|| summary = Some(run(&config, &stop).unwrap()));
        let summary = summary.unwrap();
        assert_eq!((summary.steps, summary.interrupted), (1, interrupted));
        assert_eq!(
            log.contains("stopped after 1 of 3 steps"),
            interrupted,
            "{log}"
        );
        assert!(summary.model.join("model.safetensors").is_file());
    }
}

/// Every kind of parameter, tied and not, with padding rows in the head and padded sequences in the batch.
#[test]
fn gradients_match_central_differences() {
    for tied in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        write_inputs(dir.path(), tied);
        let options = LoadOptions {
            base: Base::Trainable,
            ..LoadOptions::reference()
        };
        let shape = ModelConfig::load(dir.path()).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        let decoder = Decoder::load(&shape, &weights, &options).unwrap();
        let objective = Objective::new(&decoder, WORDS, 4);
        let sequence = |ids: &[u32]| Sequence {
            id: 0,
            content_id: 0,
            text: String::new(),
            token_ids: ids.to_vec(),
            byte_offsets: Vec::new(),
            target_mask: (0..ids.len()).map(|t| t > 0 && t != 2).collect(),
            view: None,
        };
        let batch = [sequence(&[1, 5, 9, 30, 2, 7]), sequence(&[4, 4, 8])];
        let batch: Vec<&Sequence> = batch.iter().collect();
        let mut gradients = Gradients::new();
        objective.forward_backward(&batch, &mut gradients).unwrap();
        let parameters = decoder.parameters();
        assert!(
            gradients
                .check(&parameters, &gradients.squares().unwrap())
                .unwrap()
                .missing
                .is_empty()
        );
        let value = || {
            let mut unused = Gradients::new();
            objective.forward_backward(&batch, &mut unused).unwrap()
        };
        for (name, var) in &parameters {
            let gradient = gradients.get(name).unwrap();
            let (at, expected) = largest(gradient);
            let slope = slope(var, at, &value);
            // f32 forward passes, differences of 2e-2: three digits.
            assert!(
                (slope - expected).abs() <= 1e-2 * expected.abs() + 2e-4,
                "{name}[{at}]: {expected} against {slope}"
            );
        }
    }
}

/// The element of largest size, with its place.
fn largest(tensor: &candle_core::Tensor) -> (usize, f64) {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    let best = (0..values.len())
        .max_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs()))
        .unwrap();
    (best, f64::from(values[best]))
}

fn slope(var: &Var, at: usize, value: &dyn Fn() -> f64) -> f64 {
    let step = 1e-2_f32;
    let original: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
    let set = |values: Vec<f32>| {
        let tensor = candle_core::Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap();
        assert_eq!(tensor.dtype(), DType::F32);
        var.set(&tensor).unwrap();
    };
    let mut shifted = original.clone();
    shifted[at] = original[at] + step;
    set(shifted.clone());
    let above = value();
    shifted[at] = original[at] - step;
    set(shifted);
    let below = value();
    set(original);
    (above - below) / (2.0 * f64::from(step))
}

#[test]
fn settings_that_make_no_run_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    write_inputs(dir.path(), true);
    let refused = |config: &PretrainConfig| {
        let error = run(config, &Shutdown::default()).unwrap_err();
        error.to_string()
    };
    let base = config(dir.path());
    let neither = PretrainConfig {
        model_config: None,
        ..base.clone()
    };
    assert!(refused(&neither).contains("--model-config"));
    let no_data = PretrainConfig {
        data: Vec::new(),
        ..base.clone()
    };
    assert!(refused(&no_data).contains("--data"));
    let json = fs::read_to_string(dir.path().join("config.json")).unwrap();
    let small = dir.path().join("small.json");
    fs::write(
        &small,
        json.replace("\"vocab_size\": 40", "\"vocab_size\": 8"),
    )
    .unwrap();
    let small = PretrainConfig {
        model_config: Some(small),
        ..base
    };
    let message = refused(&small);
    assert!(message.contains("vocab_size is 8"), "{message}");
}
