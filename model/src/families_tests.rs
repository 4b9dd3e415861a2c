//! Tests of every family against Hugging Face transformers, at every position and on every way through the decoder. The
//! fixtures and their recipe: tests/fixtures/families, tests/fixtures/make_families.py.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use crate::test_support::{largest_difference, through_a_cache};
use crate::{Base, Decoder, LoadOptions, LoraConfig, ModelConfig, RopeScaling, Weights};

/// Two attention implementations of PyTorch differ by up to 9e-6 on these logits (-10..10); what the script tries as mistakes
/// moves them by 0.04 and more.
const TOLERANCE: f32 = 5e-5;

struct Fixture {
    decoder: Decoder,
    ids: Tensor,
    logits: Tensor,
}

fn directory(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families");
    root.join(name)
}

fn opened(name: &str) -> (ModelConfig, Weights) {
    let dir = directory(name);
    (
        ModelConfig::load_teacher(&dir).unwrap(),
        Weights::open(&dir).unwrap(),
    )
}

fn fixture(name: &str, base: Base) -> Fixture {
    let options = LoadOptions {
        base,
        ..LoadOptions::reference()
    };
    let (config, weights) = opened(name);
    let decoder = Decoder::load(&config, &weights, &options).unwrap();
    let file = directory(name).join("expected.safetensors");
    let expected = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    Fixture {
        decoder,
        ids: expected["ids"].clone(),
        logits: expected["logits"].clone(),
    }
}

#[track_caller]
fn assert_logits(fixture: &Fixture, way: &str, hidden: &Tensor) {
    let head = fixture.decoder.head().unwrap().t().unwrap();
    let logits = hidden.flatten_to(1).unwrap().matmul(&head).unwrap();
    let difference = largest_difference(&logits, &fixture.logits);
    assert!(difference < TOLERANCE, "{way} is off by {difference:e}");
}

/// Every way through the decoder: slices and graph, recomputed and kept, in pieces through a cache, packed into one row.
#[track_caller]
fn assert_like_transformers(name: &str) {
    for (base, kind) in [(Base::AsStored, "slices"), (Base::Trainable, "graph")] {
        assert_every_way(&fixture(name, base), kind);
    }
}

#[track_caller]
fn assert_every_way(fixture: &Fixture, kind: &str) {
    let Fixture { decoder, ids, .. } = fixture;
    let whole = decoder.hidden_states(ids).unwrap();
    assert_logits(fixture, &format!("{kind}, hidden_states"), &whole);
    let taped = decoder.checkpointed(ids).unwrap();
    assert_logits(fixture, &format!("{kind}, checkpointed"), taped.hidden());
    let graph = decoder.forward_graph(ids).unwrap();
    assert_logits(fixture, &format!("{kind}, forward_graph"), &graph);

    let (batch, len) = ids.dims2().unwrap();
    let cached = through_a_cache(decoder, ids, &[7, 1, 30, 1, 31]);
    assert_logits(fixture, &format!("{kind}, through a cache"), &cached);

    let row = ids.reshape((1, batch * len)).unwrap();
    let packed = decoder
        .packed_forward_graph(&row, &vec![len; batch])
        .unwrap();
    assert_logits(fixture, &format!("{kind}, packed"), &packed);
}

#[test]
fn qwen3_norms_its_heads() {
    let config = fixture("qwen3", Base::AsStored).decoder.config().clone();
    assert!(config.qk_norm && config.query_size() > config.hidden_size);
    assert_like_transformers("qwen3");
}

#[test]
fn qwen2_has_windows_in_some_layers() {
    let decoder = fixture("qwen2-windows", Base::AsStored).decoder;
    assert_eq!(decoder.config().windows, [None, Some(9)]);
    assert_like_transformers("qwen2-windows");
}

#[test]
fn mistral_has_windows_in_all_layers() {
    assert_like_transformers("mistral");
}

#[test]
fn llama3_stretches_long_waves() {
    let decoder = fixture("llama3-rope", Base::AsStored).decoder;
    let scaling = &decoder.config().rope_scaling;
    assert!(matches!(scaling, RopeScaling::Llama3 { .. }));
    assert_like_transformers("llama3-rope");
}

#[test]
fn linear_scaling_as_transformers_4_wrote_it() {
    assert_like_transformers("linear-rope");
}

#[test]
fn phi3_is_split_into_its_projections() {
    let fixture = fixture("phi3", Base::AsStored);
    assert_eq!(fixture.decoder.config().windows, [Some(9); 2]);
    assert_every_way(&fixture, "slices");
    // One matrix of the checkpoint cannot have three adapters.
    for options in [
        LoadOptions {
            lora: Some(LoraConfig::default()),
            ..LoadOptions::reference()
        },
        LoadOptions {
            base: Base::Trainable,
            ..LoadOptions::reference()
        },
    ] {
        let (config, weights) = opened("phi3");
        let error = Decoder::load(&config, &weights, &options).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("qkv_proj") && message.contains("teacher"),
            "{message}"
        );
    }
}

#[test]
fn every_fixture_has_the_tensors_that_its_config_names() {
    for name in [
        "qwen3",
        "qwen2-windows",
        "llama3-rope",
        "mistral",
        "phi3",
        "smollm3",
        "qwen3-moe",
        "qwen3-moe-sparse",
    ] {
        let (config, weights) = opened(name);
        let mut shapes = config.parameter_shapes();
        shapes.sort();
        let stored: Vec<(String, Vec<usize>)> = weights
            .names()
            .map(|tensor| (tensor.to_owned(), weights.shape(tensor).unwrap().to_vec()))
            .collect();
        assert_eq!(shapes, stored, "{name}");
    }
}

#[test]
fn experts_are_refused_by_students_and_by_the_decoder() {
    let refusal = ModelConfig::load(&directory("qwen3-moe")).unwrap_err();
    let (config, weights) = opened("qwen3-moe");
    let decoder = Decoder::load(&config, &weights, &LoadOptions::reference()).unwrap_err();
    for (message, parts) in [
        (
            refusal.to_string(),
            ["model_type", "teacher-server only", "qwen3, llama"],
        ),
        (
            decoder.to_string(),
            ["qwen3_moe", "teacher-server", "student"],
        ),
    ] {
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
}

#[test]
fn smollm3_has_layers_that_turn_nothing() {
    let decoder = fixture("smollm3", Base::AsStored).decoder;
    assert_eq!(decoder.config().turned, [true, false]);
    assert_like_transformers("smollm3");
}
