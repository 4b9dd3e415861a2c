//! Adapters that PEFT saved, against the logits that it computes with them (tests/fixtures/make_peft.py).

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use distill_model::{Decoder, LoadOptions, ModelConfig, Weights};

use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).unwrap().abs().unwrap();
    difference.max_all().unwrap().to_scalar().unwrap()
}

/// The logits of a base under `models/` with the adapter in `adapter`: [1, T, V].
fn logits(adapter: &Path, ids: &Tensor) -> Tensor {
    let config = AdapterConfig::read(adapter).unwrap();
    let base = fixtures().join(config.base_model_name_or_path.as_deref().unwrap());
    let options = LoadOptions {
        lora: Some(config.lora()),
        ..LoadOptions::reference()
    };
    let model = ModelConfig::load(&base).unwrap();
    let decoder = Decoder::load(&model, &Weights::open(&base).unwrap(), &options).unwrap();
    load_adapter(adapter, &decoder.parameters()).unwrap();
    let hidden = decoder.hidden_states(ids).unwrap();
    hidden
        .broadcast_matmul(&decoder.head().unwrap().t().unwrap())
        .unwrap()
}

#[test]
fn adapters_of_peft_give_its_logits() {
    for name in ["patterns", "expression", "all-linear", "layers"] {
        let directory = fixtures().join("peft").join(name);
        let expected = directory.join("expected.safetensors");
        let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
        let ids = expected["ids"].to_dtype(DType::U32).unwrap();
        let ours = logits(&directory, &ids);
        let difference = max_difference(&ours, &expected["logits"]);
        // Logits of -10..10; without the adapter, or with one wrong rank or alpha, they move by 0.1 and more.
        assert!(difference < 1e-4, "{name}: {difference}");
        let last = ours
            .narrow(1, ids.dims()[1] - 1, 1)
            .unwrap()
            .squeeze(1)
            .unwrap();
        let moved = max_difference(&last, &expected["base"]);
        assert!(moved > 0.1, "{name}: the adapter moves nothing ({moved})");
    }
}

#[test]
fn a_configuration_of_peft_survives_being_read_and_written() {
    for name in ["patterns", "expression", "all-linear", "layers"] {
        let config = AdapterConfig::read(&fixtures().join("peft").join(name)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONFIG_FILE), config.to_json().unwrap()).unwrap();
        assert_eq!(AdapterConfig::read(dir.path()).unwrap(), config);
    }
}
