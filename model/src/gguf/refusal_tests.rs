use std::fs;

use candle_core::quantized::{GgmlDType, QTensor};

use super::tests::{model, write_gguf_with};
use super::*;
use crate::testing::TinyModel;

/// What opening a file, and reading its tokenizer, says after a change of one metadata entry.
fn after(key: &str, value: Value) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let tiny = model(TinyModel::llama());
    let path = write_gguf_with(dir.path(), &tiny, GgmlDType::F32, |metadata, _| {
        metadata.retain(|(known, _)| known != key);
        metadata.push((key.to_owned(), value));
    });
    let opened = Gguf::open(&path).and_then(|gguf| gguf.tokenizer());
    opened.err().map(|e| e.to_string())
}

#[test]
fn an_alignment_of_zero_is_no_division_by_zero() {
    let message = after("general.alignment", Value::U32(0)).unwrap();
    assert!(message.contains("general.alignment"), "{message}");
    assert_eq!(after("general.alignment", Value::U32(32)), None);
}

#[test]
fn metadata_of_another_model_is_refused_by_its_key() {
    let text = |text: &str| Value::String(text.into());
    for (key, value, expected) in [
        (
            "general.architecture",
            text("mamba"),
            "this build reads llama, qwen2",
        ),
        (
            "general.architecture",
            Value::U32(1),
            "general.architecture",
        ),
        (
            "llama.rope.scaling.type",
            text("yarn"),
            "scaled rotary angles",
        ),
        (
            "llama.rope.scaling.factor",
            Value::F32(4.0),
            "scaled rotary angles",
        ),
        (
            "llama.attention.sliding_window",
            Value::U32(4096),
            "a window",
        ),
        ("llama.expert_count", Value::U32(8), "experts"),
        (
            "llama.rope.dimension_count",
            Value::U32(2),
            "rope.dimension_count",
        ),
        (
            "llama.attention.head_count",
            Value::U32(0),
            "num_attention_heads",
        ),
        (
            "llama.block_count",
            Value::U32(u32::MAX),
            "num_hidden_layers",
        ),
        // One layer more than there are tensors for.
        ("llama.block_count", Value::U32(3), "model.layers.2."),
        // A default in place of a value that cannot be read would be another model.
        (
            "llama.rope.freq_base",
            Value::U32(500_000),
            "llama.rope.freq_base",
        ),
        (
            "llama.attention.head_count_kv",
            Value::F32(2.0),
            "head_count_kv",
        ),
        (
            "tokenizer.ggml.model",
            text("llama"),
            "name the tokenizer's directory",
        ),
        (
            "tokenizer.ggml.token_type",
            Value::Array(vec![Value::I32(1)]),
            "1 entries for 5 tokens",
        ),
        (
            "tokenizer.ggml.tokens",
            Value::Array(vec![text("a"); 200]),
            "200",
        ),
    ] {
        let message = after(key, value).unwrap_or_default();
        assert!(message.contains(expected), "{key}: {message}");
    }
    assert_eq!(after("llama.rope.scaling.type", text("none")), None);
    assert_eq!(after("llama.expert_count", Value::U32(0)), None);
}

#[test]
fn a_value_of_the_wrong_type_is_not_printed_whole() {
    let vocabulary = Value::Array(vec![Value::String("token".into()); 10_000]);
    let message = after("general.architecture", vocabulary).unwrap();
    assert!(message.contains("not a string"), "{message}");
    assert!(message.len() < 1000, "{}", message.len());
}

#[test]
fn tensors_that_would_be_left_out_are_refused() {
    for name in [
        "rope_freqs.weight",
        "blk.0.attn_q.bias",
        "blk.1.ffn_gate_exps.weight",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let tiny = model(TinyModel::llama());
        let path = write_gguf_with(dir.path(), &tiny, GgmlDType::F32, |_, tensors| {
            let extra = Tensor::zeros(32, DType::F32, &Device::Cpu).unwrap();
            tensors.push((
                name.into(),
                QTensor::quantize(&extra, GgmlDType::F32).unwrap(),
            ));
        });
        let message = Gguf::open(&path).err().unwrap().to_string();
        assert!(
            message.contains(name) && message.contains("no part of"),
            "{message}"
        );
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = model(TinyModel::qwen2());
    let path = write_gguf_with(dir.path(), &tiny, GgmlDType::F32, |_, tensors| {
        tensors.retain(|(name, _)| name != "blk.1.attn_k.bias");
    });
    let message = Gguf::open(&path).err().unwrap().to_string();
    assert!(
        message.contains("model.layers.1.self_attn.k_proj.bias"),
        "{message}"
    );
}

#[test]
fn counts_beyond_the_file_are_refused_before_anything_is_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_gguf_with(
        dir.path(),
        &model(TinyModel::llama()),
        GgmlDType::F32,
        |_, _| (),
    );
    let bytes = fs::read(&path).unwrap();
    // Magic and version take 8 bytes; then come the number of tensors, of metadata entries, and the first key's length.
    for at in [8, 16, 24] {
        for count in [u64::MAX, u64::MAX / 16, 1 << 40, 1 << 29] {
            let mut damaged = bytes.clone();
            damaged[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let path = dir.path().join("damaged.gguf");
            fs::write(&path, damaged).unwrap();
            let message = Gguf::open(&path).err().unwrap().to_string();
            assert!(message.contains("GGUF header"), "{at} {count}: {message}");
        }
    }
}
