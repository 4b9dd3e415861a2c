//! Models in a file's blocks against the same values in dense tensors.

use std::collections::HashMap;

use candle_core::quantized::{GgmlDType, gguf_file::Value};
use candle_core::{DType, Device, Tensor};

use super::tests::{write_gguf, write_gguf_with};
use super::*;
use crate::testing::TinyModel;
use crate::{Base, Decoder, LoadOptions, TokenMatrix, Weights};

type Metadata = Vec<(String, Value)>;

/// Wide enough for the blocks of k-quants.
fn wide(base: TinyModel) -> TinyModel {
    TinyModel {
        hidden_size: 256,
        intermediate_size: 512,
        num_hidden_layers: 1,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        vocab_size: 40,
        ..base
    }
}

pub(super) fn load(path: &Path, options: &LoadOptions) -> Decoder {
    let weights = Weights::open(path).unwrap();
    Decoder::load(&weights.model_config().unwrap(), &weights, options).unwrap()
}

/// The decoder of the values that the file stands for, as a checkpoint in f32.
fn dequantised(path: &Path) -> Decoder {
    let gguf = Gguf::open(path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tensors: HashMap<String, Tensor> = gguf
        .names()
        .map(|name| (name.to_owned(), gguf.tensor(name).unwrap()))
        .collect();
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    let config = gguf.config_json().to_string();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    load(dir.path(), &LoadOptions::reference())
}

/// Logits [T, V] of some ids.
fn logits(decoder: &Decoder) -> Tensor {
    let ids: Vec<u32> = (0..9).map(|i| (i * 7) % 40).collect();
    logits_of(
        decoder,
        &Tensor::from_vec(ids, (1, 9), &Device::Cpu).unwrap(),
    )
}

/// Logits of all positions [T, V] of ids [1, T].
pub(super) fn logits_of(decoder: &Decoder, ids: &Tensor) -> Tensor {
    let hidden = decoder.hidden_states(ids).unwrap().squeeze(0).unwrap();
    let hidden = hidden.to_dtype(DType::F32).unwrap();
    match decoder.head_matrix() {
        TokenMatrix::Packed(head) => head.product(&hidden).unwrap(),
        TokenMatrix::Dense(head) => hidden.matmul(&head.tensor().t().unwrap()).unwrap(),
    }
}

fn worst(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).unwrap().abs().unwrap();
    difference.max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn logits_are_those_of_the_dequantised_model() {
    let untied = TinyModel {
        tie_word_embeddings: false,
        ..TinyModel::llama()
    };
    for dtype in [
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q8_0,
        GgmlDType::Q4_0,
        GgmlDType::Q4K,
        GgmlDType::Q6K,
    ] {
        let bases = [TinyModel::llama(), TinyModel::qwen2(), TinyModel::qwen3()];
        for base in bases.into_iter().chain([untied.clone()]) {
            let dir = tempfile::tempdir().unwrap();
            let path = write_gguf(dir.path(), &wide(base), dtype);
            let packed = load(&path, &LoadOptions::reference());
            assert!(matches!(packed.head_matrix(), TokenMatrix::Packed(_)));
            let dense = dequantised(&path);
            let expected = logits(&dense);
            let largest: f32 = expected
                .abs()
                .unwrap()
                .max_all()
                .unwrap()
                .to_scalar()
                .unwrap();
            let difference = worst(&logits(&packed), &expected);
            // The same values: only the order of f32 sums of 256 and 512 products differs.
            assert!(
                largest > 0.5 && difference < 2e-5,
                "{dtype:?}: {difference} of {largest}"
            );
            assert!(2 * packed.weight_bytes() <= dense.weight_bytes() + 4 * 4096);
            let weights = Weights::open(&path).unwrap();
            let (config, options) = (packed.config(), LoadOptions::reference());
            let foreseen = crate::weight_bytes(config, &weights, &options).unwrap();
            assert_eq!(foreseen, packed.weight_bytes() as u64);
        }
    }
}

#[test]
fn activations_in_half_precision_meet_unrounded_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_gguf(dir.path(), &wide(TinyModel::qwen2()), GgmlDType::Q5K);
    let options = LoadOptions {
        dtype: DType::BF16,
        ..LoadOptions::reference()
    };
    let difference = worst(
        &logits(&load(&path, &options)),
        &logits(&dequantised(&path)),
    );
    // Logits of order 1 from activations with 8 significant bits, rounded some ten times.
    assert!(difference > 0.0 && difference < 0.1, "{difference}");
}

#[test]
fn plain_floats_are_held_densely_and_a_packed_head_is_never_widened_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_gguf(dir.path(), &wide(TinyModel::qwen2()), GgmlDType::F32);
    assert!(load(&path, &LoadOptions::reference()).head().is_ok());
    let path = write_gguf(dir.path(), &wide(TinyModel::qwen2()), GgmlDType::Q4_1);
    let decoder = load(&path, &LoadOptions::reference());
    let message = decoder.head().unwrap_err().to_string();
    assert!(
        message.contains("Q4_1") && message.contains("quantize"),
        "{message}"
    );
    let rows = decoder.head_matrix().narrow(7).unwrap();
    let values = rows.values(5..7).unwrap();
    let expected = dequantised(&path).head_matrix().values(5..7).unwrap();
    assert_eq!(worst(&values, &expected), 0.0);
    assert!(rows.values(6..8).is_err());
}

#[test]
fn blocks_are_not_trained_or_quantised_anew_while_they_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_gguf(dir.path(), &wide(TinyModel::llama()), GgmlDType::Q8_0);
    let weights = Weights::open(&path).unwrap();
    let config = weights.model_config().unwrap();
    let options = LoadOptions {
        base: Base::QuantizeNf4,
        ..LoadOptions::reference()
    };
    let message = Decoder::load(&config, &weights, &options)
        .unwrap_err()
        .to_string();
    assert!(message.contains("student-trainer quantize"), "{message}");
}

#[test]
fn the_fingerprint_follows_types_values_and_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let of = |tiny: &TinyModel, dtype, change: &dyn Fn(&mut Metadata)| {
        let path = write_gguf_with(dir.path(), tiny, dtype, |metadata, _| change(metadata));
        Weights::open(&path).unwrap().fingerprint().unwrap()
    };
    let tiny = wide(TinyModel::llama());
    let same = |_: &mut Metadata| ();
    let base = of(&tiny, GgmlDType::Q8_0, &same);
    assert_eq!(of(&tiny, GgmlDType::Q8_0, &same), base);
    assert_ne!(of(&tiny, GgmlDType::Q4_0, &same), base);
    let theta = |metadata: &mut Metadata| {
        metadata.retain(|(key, _)| key != "llama.rope.freq_base");
        metadata.push(("llama.rope.freq_base".into(), Value::F32(5e5)));
    };
    assert_ne!(of(&tiny, GgmlDType::Q8_0, &theta), base);
    // What says nothing about the computation does not count.
    let named = |metadata: &mut Metadata| {
        metadata.push(("general.name".into(), Value::String("other".into())));
    };
    assert_eq!(of(&tiny, GgmlDType::Q8_0, &named), base);
    // One bit of one block.
    let path = dir.path().join("model.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_ne!(Weights::open(&path).unwrap().fingerprint().unwrap(), base);
}
