//! Checkpoints that transformers and bitsandbytes quantised, against the logits of their dequantised weights
//! (tests/fixtures/make_bnb.py).

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use distill_model::{Base, Decoder, LoadOptions, ModelConfig, Weights};

use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn load(name: &str) -> distill_model::Result<Decoder> {
    let directory = fixtures().join("bnb").join(name);
    let options = LoadOptions {
        // What `train` asks for by default: skipped modules must stay as they are.
        base: Base::QuantizeNf4,
        ..LoadOptions::reference()
    };
    let config = ModelConfig::load(&directory)?;
    Decoder::load(&config, &Weights::open(&directory)?, &options)
}

#[test]
fn sharded_and_partly_skipped_checkpoints_give_the_logits_of_their_dequantised_weights() {
    for name in ["nf4-double", "fp4-skip"] {
        let path = fixtures()
            .join("bnb")
            .join(name)
            .join("expected.safetensors");
        let expected = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let ids = expected["ids"].to_dtype(DType::U32).unwrap();
        let decoder = load(name).unwrap();
        let hidden = decoder.hidden_states(&ids).unwrap();
        let logits = hidden
            .broadcast_matmul(&decoder.head().unwrap().t().unwrap())
            .unwrap();
        let difference = (logits - &expected["logits"]).unwrap().abs().unwrap();
        let difference = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
        // f32 rounding of logits of -10..10; one skipped matrix in four bits moves them by 0.1 and more.
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

#[test]
fn eight_bit_checkpoints_are_refused_by_name() {
    let message = load("int8").unwrap_err().to_string();
    assert!(message.contains("LLM.int8()"), "{message}");
}

/// The codes that are written are those of bitsandbytes, tensor by tensor.
#[test]
fn quantising_the_same_model_gives_the_checkpoint_of_bitsandbytes() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for (from, file) in [
        ("models/qwen2-untied", "config.json"),
        ("models/qwen2-untied", "model.safetensors"),
        ("tokenizer", "tokenizer.json"),
    ] {
        std::fs::copy(fixtures().join(from).join(file), base.join(file)).unwrap();
    }
    let config = QuantizeConfig {
        from: base,
        out: dir.path().join("out"),
        ..QuantizeConfig::default()
    };
    run(&config, &Shutdown::default()).unwrap();
    let ours = Weights::open(&config.out).unwrap();
    let theirs = Weights::open(&fixtures().join("bnb/nf4-double")).unwrap();
    let names = |weights: &Weights| -> Vec<String> { weights.names().map(str::to_owned).collect() };
    assert_eq!(names(&ours), names(&theirs));
    for name in names(&ours) {
        // JSON with spaces, and a mean whose last bit may differ; model/src/nf4/tests.rs compares those values.
        if name.ends_with(".bitsandbytes__nf4") {
            continue;
        }
        let (ours, theirs) = (ours.raw(&name).unwrap(), theirs.raw(&name).unwrap());
        assert_eq!((ours.0, ours.1), (theirs.0, theirs.1), "{name}");
        // Scales of scales follow that mean, and the CPU kernel of bitsandbytes may take the entry beside the nearest one.
        if !name.ends_with("absmax") {
            assert!(ours.2 == theirs.2, "{name}");
        }
    }
}
