//! The head where config.json and the checkpoint disagree; that transformers 5 computes the same is checked by
//! `tests/fixtures/check_heads.py`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;

use crate::testing::{TinyModel, write_tiny_model};
use crate::{Base, Decoder, LoadOptions, ModelConfig, Weights, weight_bytes};

use super::head::{EMBEDDING, HEAD};

/// A model with a head of its own, changed, under a config.json that says `tied`.
fn model(tied: bool, change: impl Fn(&mut HashMap<String, Tensor>)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path(), &TinyModel::qwen2(), 5).unwrap();
    let file = dir.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let said = format!("\"tie_word_embeddings\": {tied}");
    std::fs::write(&path, text.replace("\"tie_word_embeddings\": false", &said)).unwrap();
    dir
}

fn load(dir: &Path, base: Base) -> crate::Result<Decoder> {
    let options = LoadOptions {
        base,
        ..LoadOptions::reference()
    };
    Decoder::load(&ModelConfig::load(dir)?, &Weights::open(dir)?, &options)
}

fn logits(dir: &Path) -> Vec<f32> {
    let decoder = load(dir, Base::AsStored).unwrap();
    let ids = Tensor::new(&[[3_u32, 1, 4, 1, 5]], &Device::Cpu).unwrap();
    let hidden = decoder.hidden_states(&ids).unwrap();
    let head = decoder.head().unwrap().t().unwrap();
    let logits = hidden.broadcast_matmul(&head).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

fn is_tied(dir: &Path) -> bool {
    let weights = Weights::open(dir).unwrap();
    let config = weights.settled(&weights.model_config().unwrap());
    let names: Vec<String> = config.parameter_shapes().into_iter().map(|p| p.0).collect();
    assert_eq!(
        names.iter().any(|name| name == HEAD),
        !config.tie_word_embeddings
    );
    config.tie_word_embeddings
}

#[test]
fn a_head_of_its_own_was_dropped_where_config_ties_it() {
    let (said, meant) = (model(true, |_| {}), model(false, |_| {}));
    let (said, meant) = (said.path(), meant.path());
    assert!(!is_tied(said) && !is_tied(meant));
    assert_eq!(logits(said), logits(meant));
    let of = |dir: &Path| {
        let weights = Weights::open(dir).unwrap();
        // As it is written, and not settled: whoever counts settles by himself.
        let config = ModelConfig::load(dir).unwrap();
        let options = LoadOptions::reference();
        let head = Decoder::load_head(&config, &weights, &options).unwrap();
        (
            weight_bytes(&config, &weights, &options).unwrap(),
            weights.fingerprint().unwrap(),
            head.tensor().unwrap().to_vec2::<f32>().unwrap(),
        )
    };
    assert_eq!(of(said), of(meant));
    // Both are trained.
    let trained = load(said, Base::Trainable).unwrap();
    let names: Vec<String> = trained.parameters().into_iter().map(|p| p.0).collect();
    for name in [EMBEDDING, HEAD] {
        assert!(names.iter().any(|known| known == name), "{name}");
    }
    assert_eq!(trained.head_name(), HEAD);
}

#[test]
fn a_copy_of_the_embedding_is_no_head_of_its_own() {
    let tied = model(true, |tensors| {
        tensors.remove(HEAD);
    });
    let copied = model(true, |tensors| {
        tensors.insert(HEAD.into(), tensors[EMBEDDING].clone());
    });
    assert!(is_tied(tied.path()) && is_tied(copied.path()));
    assert_eq!(logits(tied.path()), logits(copied.path()));
    // In another type, with and without values that it cannot hold.
    for (rounded, expected) in [(true, true), (false, false)] {
        let typed = model(true, |tensors| {
            let head = tensors[EMBEDDING].to_dtype(DType::BF16).unwrap();
            if rounded {
                tensors.insert(EMBEDDING.into(), head.to_dtype(DType::F32).unwrap());
            }
            tensors.insert(HEAD.into(), head);
        });
        assert_eq!(is_tied(typed.path()), expected);
    }
}

#[test]
fn a_tied_head_stands_for_an_embedding_that_is_not_there() {
    let only_head = model(true, |tensors| {
        let embedding = tensors.remove(EMBEDDING).unwrap();
        tensors.insert(HEAD.into(), embedding);
    });
    let only_embedding = model(true, |tensors| {
        tensors.remove(HEAD);
    });
    assert!(is_tied(only_head.path()));
    assert_eq!(logits(only_head.path()), logits(only_embedding.path()));
}

#[test]
fn what_is_neither_tied_nor_there_is_refused_by_name() {
    type Change = fn(&mut HashMap<String, Tensor>);
    let no_head: Change = |tensors| {
        tensors.remove(HEAD);
    };
    let no_embedding: Change = |tensors| {
        tensors.remove(EMBEDDING);
    };
    let neither: Change = |tensors| {
        tensors.remove(HEAD);
        tensors.remove(EMBEDDING);
    };
    let other_size: Change = |tensors| {
        let head = tensors[HEAD].narrow(0, 0, 90).unwrap();
        tensors.insert(HEAD.into(), head);
    };
    for (tied, change, parts) in [
        (false, no_head, ["`lm_head.weight`", "tie_word_embeddings"]),
        (false, no_embedding, ["`model.embed_tokens.weight`", ""]),
        (true, neither, ["`model.embed_tokens.weight`", ""]),
        (true, other_size, ["lm_head.weight", "90"]),
    ] {
        let dir = model(tied, change);
        let error = load(dir.path(), Base::AsStored).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
