//! Tests of the families outside the decoder against Hugging Face transformers, at every position. The fixtures and their
//! recipe: tests/fixtures/families, tests/fixtures/make_families.py.

use std::{collections::HashMap, fs, path::Path};

use distill_model::testing::{TinyModel, write_tiny_model};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// Two attention implementations of PyTorch differ by up to 3e-6 on these logits (-7..7); what the script tries as mistakes
/// moves them by 0.6 and more.
const TOLERANCE: f32 = 5e-5;

fn open(dir: &Path) -> (ModelConfig, Weights) {
    (
        ModelConfig::load_teacher(dir).unwrap(),
        Weights::open(dir).unwrap(),
    )
}

/// A fixture's model in f32, its ids [B, T] and the logits [B, T, V] that transformers computes.
fn fixture(name: &str) -> (Box<dyn Backbone>, Tensor, Tensor) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families");
    let dir = root.join(name);
    let (model, weights) = open(&dir);
    let expected = candle_core::safetensors::load(dir.join("expected.safetensors"), &Device::Cpu);
    let expected = expected.unwrap();
    (
        load(&model, &weights, &LoadOptions::reference()).unwrap(),
        expected["ids"].clone(),
        expected["logits"].clone(),
    )
}

fn logits(model: &dyn Backbone, hidden: &Tensor) -> Tensor {
    let head = model.head_matrix().tensor().unwrap().t().unwrap();
    hidden.broadcast_matmul(&head).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).unwrap().abs().unwrap();
    difference.max_all().unwrap().to_scalar().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn logits_of_all_positions_are_those_of_transformers() {
    // Shares of the chosen experts normed and not, experts in all layers and in every second, head and embedding apart and
    // tied, attention with biases and without.
    for name in ["qwen3-moe", "qwen3-moe-sparse"] {
        let (model, ids, expected) = fixture(name);
        let found = logits(model.as_ref(), &model.hidden_states(&ids).unwrap());
        let difference = largest_difference(&found, &expected);
        assert!(difference < TOLERANCE, "{name} is off by {difference:e}");
    }
}

#[test]
fn a_forward_pass_leaves_nothing_behind_for_the_next() {
    let (model, ids, _) = fixture("qwen3-moe");
    let first = model.hidden_states(&ids).unwrap();
    for (batch, tokens) in [(1, 5), (2, 70), (1, 1), (2, 33)] {
        let others = ids.narrow(0, 0, batch).unwrap();
        let others = others.narrow(1, 70 - tokens, tokens).unwrap();
        let states = model.hidden_states(&others).unwrap();
        assert_eq!(states.dims(), [batch, tokens, 24]);
    }
    let again = model.hidden_states(&ids).unwrap();
    assert_eq!(bits(&first), bits(&again));
}

#[test]
fn sequences_of_unequal_lengths_share_a_batch_and_do_not_see_their_padding() {
    let (model, ids, expected) = fixture("qwen3-moe-sparse");
    let short = 41;
    let row = |i: usize, tokens| ids.narrow(0, i, 1).unwrap().narrow(1, 0, tokens).unwrap();
    for padding in [0u32, 47] {
        let padding = Tensor::full(padding, (1, 70 - short), &Device::Cpu).unwrap();
        let padded = Tensor::cat(&[&row(1, short), &padding], 1).unwrap();
        let batch = Tensor::cat(&[&row(0, 70), &padded], 0).unwrap();
        let states = model.hidden_states(&batch).unwrap();
        let found = logits(model.as_ref(), &states);
        for (i, tokens) in [(0, 70), (1, short)] {
            let of_row = |all: &Tensor| {
                let row = all.narrow(0, i, 1).unwrap();
                row.narrow(1, 0, tokens).unwrap()
            };
            let difference = largest_difference(&of_row(&found), &of_row(&expected));
            assert!(difference < TOLERANCE, "row {i} is off by {difference:e}");
            let alone = model.hidden_states(&row(i, tokens)).unwrap();
            let difference = largest_difference(&of_row(&states), &alone);
            // Products of other shapes round differently; states are of order one.
            assert!(difference < TOLERANCE, "row {i} moves by {difference:e}");
        }
    }
}

/// A model that is written with these settings on top, and what is in its directory.
fn tiny(settings: &[(&'static str, Value)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut model = TinyModel::qwen3_moe();
    model.settings.extend_from_slice(settings);
    write_tiny_model(dir.path(), &model, 3).unwrap();
    dir
}

#[test]
fn bf16_does_not_get_worse_with_the_position() {
    let dir = tiny(&[]);
    let (model, weights) = open(dir.path());
    let tokens = 640;
    let ids: Vec<u32> = (0..tokens).map(|t| t * 29 % 96).collect();
    let ids = Tensor::from_vec(ids, (1, tokens as usize), &Device::Cpu).unwrap();
    let states = |dtype| {
        let options = LoadOptions {
            dtype,
            ..LoadOptions::reference()
        };
        let model = load(&model, &weights, &options).unwrap();
        let states = model.hidden_states(&ids).unwrap();
        assert_eq!(states.dtype(), dtype);
        states.to_dtype(DType::F32).unwrap()
    };
    let error = (states(DType::F32) - states(DType::BF16)).unwrap();
    let error = error.sqr().unwrap();
    let of_half = |start| {
        let half = error.narrow(1, start, 320).unwrap().mean_all().unwrap();
        half.to_scalar::<f32>().unwrap().sqrt()
    };
    let (early, late) = (of_half(0), of_half(320));
    // Angles in bf16 would be wrong by up to one radian from position 256 on.
    assert!(
        early > 0.0 && late < 1.5 * early && late < 0.2,
        "{early} to {late}"
    );
}

#[test]
fn every_weight_is_counted_once() {
    for name in ["qwen3-moe", "qwen3-moe-sparse"] {
        let (model, _, _) = fixture(name);
        let shapes = model.config().parameter_shapes();
        let numbers: usize = shapes
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        assert_eq!(model.weight_bytes(), 4 * numbers, "{name}");
    }
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let dir = tiny(&[]);
    let (model, weights) = open(dir.path());
    let loaded = load(&model, &weights, &LoadOptions::reference()).unwrap();
    let refused = |ids: &[u32]| {
        let ids = Tensor::new(ids, &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        loaded.hidden_states(&ids).unwrap_err().to_string()
    };
    assert!(refused(&[1, 96]).contains("token id 96 at position 1"));
    assert!(refused(&[]).contains("at least"));
    assert!(refused(&vec![1; 4097]).contains("4096 positions"));
    let ids = Tensor::zeros((1, 3), DType::U32, &Device::Cpu).unwrap();
    let layer = loaded.hidden_states_and_layers(&ids, &[1]).unwrap_err();
    assert!(
        layer.to_string().contains("layers [1] of qwen3_moe"),
        "{layer}"
    );

    let (far, weights) = open(tiny(&[("max_position_embeddings", json!(1 << 21))]).path());
    let message = check(&far, &weights).unwrap_err().to_string();
    assert!(
        message.contains("max_position_embeddings = 2097152"),
        "{message}"
    );
}

/// The error of a model whose tensors `change` has changed.
fn changed(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Error {
    let dir = tiny(&[]);
    let file = dir.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    change(&mut tensors);
    fs::remove_file(&file).unwrap();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let (model, weights) = open(dir.path());
    match load(&model, &weights, &LoadOptions::reference()) {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    }
}

#[test]
fn damaged_weights_are_named_by_typed_errors() {
    let name = "model.layers.1.mlp.experts.2.up_proj.weight";
    let missing = changed(|tensors| {
        tensors.remove(name).unwrap();
    });
    assert!(
        matches!(&missing, Error::MissingTensor { tensor, .. } if tensor == name),
        "{missing}"
    );
    let shape = changed(|tensors| {
        let turned = tensors[name].t().unwrap().contiguous().unwrap();
        tensors.insert(name.into(), turned);
    });
    assert!(
        matches!(&shape, Error::Shape { what, expected, actual }
            if what.contains(name) && *expected == [48, 64] && *actual == [64, 48]),
        "{shape}"
    );
    let packed = changed(|tensors| {
        let state = Tensor::zeros(4, DType::U8, &Device::Cpu).unwrap();
        tensors.insert(format!("{name}.quant_state.bitsandbytes__nf4"), state);
    });
    assert!(
        matches!(&packed, Error::Unsupported { what, remedy }
            if what.contains("qwen3_moe in bitsandbytes' four bits") && remedy.contains("bf16")),
        "{packed}"
    );
}

#[test]
fn only_candle_transformers_keeps_scores_of_all_pairs() {
    let (outside, _) = open(tiny(&[]).path());
    let decoder = ModelConfig {
        model_type: Architecture::Qwen3,
        ..outside.clone()
    };
    let of = |model, dtype| score_bytes(model, (3, 100), dtype, &Device::Cpu);
    assert_eq!(of(&decoder, DType::F32), 0);
    assert_eq!(of(&outside, DType::BF16), 2 * 4 * 100 * 100);
}
