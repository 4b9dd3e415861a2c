//! Files with Llama 3.1's angles or a window against transformers, which is told the same in config.json's words. The fixtures
//! and their recipe: tests/fixtures/gguf, tests/fixtures/make_gguf.py.

use candle_core::quantized::{GgmlDType, QTensor, gguf_file::Value};

use super::decoder_tests::{load, logits_of};
use super::tests::{model, write_gguf_with};
use super::*;
use crate::test_support::largest_difference;
use crate::testing::TinyModel;
use crate::{LoadOptions, RopeScaling};
use candle_core::{Device, Tensor};

/// What two orders of summation differ by on these logits, of up to 10; overlooking what is special moves them by 9.
const TOLERANCE: f32 = 5e-5;

const FACTORS: &str = "rope_freqs.weight";

/// The configuration of the fixture, whose logits are compared on the way.
#[track_caller]
fn like_transformers(name: &str) -> ModelConfig {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf");
    let directory = root.join(name);
    let decoder = load(&directory.join("model.gguf"), &LoadOptions::reference());
    let expected = directory.join("expected.safetensors");
    let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
    let logits = logits_of(&decoder, &expected["ids"]).unsqueeze(0).unwrap();
    let difference = largest_difference(&logits, &expected["logits"]);
    assert!(difference < TOLERANCE, "{name} is off by {difference:e}");
    decoder.config().clone()
}

#[test]
fn factors_of_frequencies_are_llama3_scaling() {
    let config = like_transformers("llama3");
    assert_eq!(config.model_type, Architecture::Llama);
    let RopeScaling::LongRope { factors } = config.rope_scaling else {
        panic!("{:?}", config.rope_scaling);
    };
    assert_eq!((factors[0], factors[3]), (1.0, 8.0));
}

#[test]
fn a_llama_file_with_a_window_is_mistral_s() {
    let config = like_transformers("mistral");
    assert_eq!(config.model_type, Architecture::Mistral);
    assert_eq!(config.windows, [Some(9); 2]);
}

/// A file with these factors, F32 unless said otherwise.
fn with_factors(dir: &Path, factors: &[f32], dtype: GgmlDType) -> PathBuf {
    let tiny = TinyModel {
        rope_theta: 5e5,
        settings: vec![("head_dim", 128.into())],
        ..model(TinyModel::llama())
    };
    write_gguf_with(dir, &tiny, GgmlDType::F32, |_, tensors| {
        let factors = Tensor::new(factors, &Device::Cpu).unwrap();
        let factors = QTensor::quantize(&factors, dtype).unwrap();
        tensors.push((FACTORS.into(), factors));
    })
}

#[test]
fn frequencies_of_published_models_are_those_of_their_config_json() {
    for factor in [8.0, 32.0] {
        let llama3 = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let omega = |pair: usize| 5e5_f64.powf(-2.0 * pair as f64 / 128.0);
        let factors: Vec<f32> = (0..64)
            .map(|pair| (omega(pair) / llama3.scale(pair, omega(pair))) as f32)
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = with_factors(dir.path(), &factors, GgmlDType::F32);
        let read = Gguf::open(&path).unwrap().config().rope_scaling.clone();
        for pair in 0..64 {
            let expected = llama3.scale(pair, omega(pair));
            let relative = read.scale(pair, omega(pair)) / expected - 1.0;
            // A factor is rounded to f32 once: by half of its last place.
            assert!(
                relative.abs() <= f64::from(f32::EPSILON) / 2.0,
                "{pair}: {relative:e}"
            );
        }
        let stretched = (0..64).filter(|&pair| read.scale(pair, 1.0) < 1.0).count();
        assert!((20..50).contains(&stretched), "{stretched}");
    }
}

#[test]
fn the_fingerprint_follows_the_factors() {
    let fingerprint = |factor: f32| {
        let dir = tempfile::tempdir().unwrap();
        let path = with_factors(dir.path(), &[factor; 64], GgmlDType::F32);
        crate::Weights::open(&path).unwrap().fingerprint().unwrap()
    };
    assert_eq!(fingerprint(2.0), fingerprint(2.0));
    assert_ne!(fingerprint(2.0), fingerprint(4.0));
}

#[test]
fn factors_that_cannot_be_are_refused_by_their_tensor() {
    let mut broken = vec![(vec![1.0; 63], GgmlDType::F32, "[63]")];
    broken.push((vec![1.0; 64], GgmlDType::F16, "stored as F16"));
    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let mut factors = vec![1.0; 64];
        factors[7] = wrong;
        broken.push((factors, GgmlDType::F32, "frequency 7 of 64"));
    }
    for (factors, dtype, expected) in broken {
        let dir = tempfile::tempdir().unwrap();
        let path = with_factors(dir.path(), &factors, dtype);
        let message = Gguf::open(&path).err().unwrap().to_string();
        assert!(
            message.contains(FACTORS) && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn a_window_is_taken_where_it_is_known_which_layers_have_it() {
    let opened = |base: TinyModel, window: u32| {
        let dir = tempfile::tempdir().unwrap();
        let tiny = model(base);
        let key = format!("{}.attention.sliding_window", tiny.architecture.name());
        let path = write_gguf_with(dir.path(), &tiny, GgmlDType::F32, |metadata, _| {
            metadata.push((key, Value::U32(window)));
        });
        let gguf = Gguf::open(&path).map_err(|e| e.to_string())?;
        Ok::<_, String>(gguf.config().windows.clone())
    };
    // The models are for 4096 positions.
    for (window, expected) in [(0, None), (4095, Some(4095)), (4096, None)] {
        assert_eq!(
            opened(TinyModel::llama(), window),
            Ok(vec![expected; 2]),
            "{window}"
        );
    }
    for base in [TinyModel::qwen2(), TinyModel::qwen3()] {
        assert_eq!(opened(base.clone(), 5000), Ok(vec![None; 2]));
        let message = opened(base, 4095).unwrap_err();
        assert!(
            message.contains("attention.sliding_window") && message.contains("which layers"),
            "{message}"
        );
    }
}
