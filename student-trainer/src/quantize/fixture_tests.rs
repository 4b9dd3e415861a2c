//! GGUF files written by llama.cpp's library against what transformers reads from them (tests/fixtures/make_gguf.py).

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device};
use distill_model::{ModelConfig, Weights};
use distill_text::TokenizerFiles;

use super::*;

#[derive(serde::Deserialize)]
struct Line {
    text: String,
    ids: Vec<u32>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn converted(kind: &str, out: &Path) -> TokenizerFiles {
    let config = QuantizeConfig {
        from: fixtures().join("gguf").join(kind).join("model.gguf"),
        out: out.to_owned(),
        weights: StoredAs::F32,
        ..QuantizeConfig::default()
    };
    run(&config, &Shutdown::default()).unwrap();
    TokenizerFiles::open(out).unwrap()
}

/// The files are F16 and so is what is expected: every value must be the same.
#[test]
fn weights_are_those_that_transformers_reads() {
    for kind in ["llama", "qwen2"] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        converted(kind, &out);
        let expected = fixtures()
            .join("gguf")
            .join(kind)
            .join("expected.safetensors");
        let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
        let config = ModelConfig::load(&out).unwrap();
        let weights = Weights::open(&out).unwrap();
        let parameters = config.parameter_shapes();
        assert_eq!(parameters.len(), expected.len(), "{kind}");
        for (name, _) in parameters {
            let found = weights.tensor(&name, DType::F32, &Device::Cpu).unwrap();
            let expected = expected[&name].to_dtype(DType::F32).unwrap();
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(found.dims(), expected.dims(), "{kind} {name}");
            assert_eq!(flat(&found), flat(&expected), "{kind} {name}");
        }
        assert_eq!(config.tie_word_embeddings, kind == "llama");
        assert_eq!(config.max_position_embeddings, 128);
        // The file has 1e5 and 1e-5 in f32.
        assert_eq!(config.rope_theta, 1e5);
        assert!((config.rms_norm_eps - 1e-5).abs() < 1e-12);
    }
}

#[test]
fn rebuilt_tokenizers_give_the_ids_of_the_published_pipelines() {
    for kind in ["llama", "qwen2"] {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = converted(kind, &dir.path().join("out"));
        let path = fixtures().join("gguf").join(kind).join("expected.json");
        let lines: Vec<Line> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert!(lines.len() > 10);
        for Line { text, ids } in lines {
            assert_eq!(tokenizer.encode(&text).unwrap().ids, ids, "{kind} {text:?}");
        }
        // Without the 16 padding rows of qwen2.
        assert_eq!(tokenizer.size(), 384);
        let special = |name: &str| tokenizer.tokenizer().token_to_id(name);
        assert_eq!(tokenizer.eos_id(), special("<|im_end|>"));
        assert!(tokenizer.has_chat_template());
    }
}

#[test]
fn a_rebuilt_qwen2_tokenizer_has_the_fingerprint_of_the_original() {
    let dir = tempfile::tempdir().unwrap();
    let rebuilt = converted("qwen2", &dir.path().join("out"));
    let original = TokenizerFiles::open(&fixtures().join("tokenizer")).unwrap();
    assert_eq!(rebuilt.fingerprint(), original.fingerprint());
    assert_eq!(
        rebuilt.vocabulary_fingerprint(),
        original.vocabulary_fingerprint()
    );
    // Another split, the same vocabulary.
    let other = converted("llama", &dir.path().join("other"));
    assert_eq!(
        other.vocabulary_fingerprint(),
        original.vocabulary_fingerprint()
    );
    assert_ne!(other.fingerprint(), original.fingerprint());
}
