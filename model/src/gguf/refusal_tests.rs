use std::fs;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file::Value};
use candle_core::{DType, Device, Tensor};

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
            "this build reads llama, qwen2, qwen3",
        ),
        (
            "general.architecture",
            text("qwen3moe"),
            "`qwen3moe`; this build reads llama, qwen2, qwen3: take the model's own safetensors",
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
            Value::F32(4096.0),
            "llama.attention.sliding_window",
        ),
        (
            "llama.attention.sliding_window_pattern",
            Value::U32(2),
            "a window in some",
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
            "tokenizer.json with --tokenizer",
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
    assert!(message.contains("is a list, not a text"), "{message}");
    assert!(message.len() < 1000, "{}", message.len());
}

#[test]
fn tensors_that_would_be_left_out_are_refused() {
    for name in [
        "rope_factors_long.weight",
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
fn one_of_several_files_is_refused_with_the_way_to_join_them() {
    let message = after("split.count", Value::U16(3)).unwrap();
    assert!(
        message.contains("3 files") && message.contains("llama-gguf-split --merge"),
        "{message}"
    );
    assert_eq!(after("split.count", Value::U16(1)), None);
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

/// The bytes of a small file, and where its header ends.
fn small_file(dir: &Path) -> (Vec<u8>, usize) {
    let tiny = model(TinyModel::llama());
    let path = write_gguf_with(dir, &tiny, GgmlDType::Q8_0, |_, _| ());
    let header = Gguf::open(&path).unwrap().header.data_start as usize;
    (fs::read(&path).unwrap(), header)
}

/// What opening these bytes as a file says.
fn opened(dir: &Path, bytes: &[u8]) -> Option<String> {
    let path = dir.join("damaged.gguf");
    fs::write(&path, bytes).unwrap();
    let error = Gguf::open(&path).err()?;
    let message = error.to_string();
    assert!(message.contains("damaged.gguf"), "{message}");
    Some(message)
}

#[test]
fn a_file_cut_at_any_byte_of_its_header_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, header) = small_file(dir.path());
    // The last bytes before the data are padding.
    for length in 0..header - 32 {
        let message = opened(dir.path(), &bytes[..length]).unwrap();
        assert!(
            message.contains("cut off") || message.contains("`GGUF`"),
            "{length}: {message}"
        );
    }
    // And inside the data, by the tensor.
    for length in [header, header + 40, bytes.len() - 40] {
        let message = opened(dir.path(), &bytes[..length]).unwrap();
        assert!(
            message.contains("tensor `") && message.contains("cut off"),
            "{message}"
        );
    }
}

#[test]
fn any_byte_of_the_header_may_be_wrong_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, header) = small_file(dir.path());
    let mut refused = 0;
    for at in 0..header {
        let mut damaged = bytes.clone();
        damaged[at] ^= [0x55, 0x80, 0xff][at % 3];
        refused += usize::from(opened(dir.path(), &damaged).is_some());
    }
    // Many bytes are letters of tokens and names of things that nobody reads.
    assert!(2 * refused > header, "{refused} of {header}");
}

#[test]
fn tensors_that_share_bytes_or_lie_outside_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, header) = small_file(dir.path());
    let name = b"blk.1.ffn_up.weight";
    let place = bytes.windows(name.len()).position(|window| window == name);
    // After the name: rank, two sizes, type, offset.
    let rank = place.unwrap() + name.len();
    let (kind, offset) = (rank + 4 + 16, rank + 4 + 16 + 4);
    let with = |at: usize, value: &[u8]| {
        let mut damaged = bytes.clone();
        damaged[at..at + value.len()].copy_from_slice(value);
        opened(dir.path(), &damaged).unwrap()
    };
    let own = u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap());
    for (what, at, value, expected) in [
        (
            "overlap",
            offset,
            (own - 32).to_le_bytes().to_vec(),
            "inside tensor",
        ),
        (
            "end",
            offset,
            (bytes.len() as u64).to_le_bytes().to_vec(),
            "cut off",
        ),
        (
            "overflow",
            offset,
            u64::MAX.to_le_bytes().to_vec(),
            "cut off",
        ),
        (
            "size",
            rank + 4,
            u64::MAX.to_le_bytes().to_vec(),
            "has shape",
        ),
        ("rank", rank, u32::MAX.to_le_bytes().to_vec(), "dimensions"),
        ("type", kind, 23_u32.to_le_bytes().to_vec(), "IQ4_XS"),
        (
            "no type",
            kind,
            4096_u32.to_le_bytes().to_vec(),
            "type 4096",
        ),
        // Rows of 64 are no whole blocks of 256.
        (
            "blocks",
            kind,
            12_u32.to_le_bytes().to_vec(),
            "whole blocks of Q4_K",
        ),
    ] {
        let message = with(at, &value);
        assert!(message.contains(expected), "{what}: {message}");
        assert!(message.contains("blk.1.ffn_up.weight"), "{what}: {message}");
    }
    assert!(header > rank);
}

#[test]
fn a_key_or_a_tensor_that_is_there_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = model(TinyModel::llama());
    let path = write_gguf_with(dir.path(), &tiny, GgmlDType::F32, |metadata, _| {
        metadata.push(("llama.block_count".into(), Value::U32(1)));
    });
    let message = Gguf::open(&path).err().unwrap().to_string();
    assert!(
        message.contains("llama.block_count") && message.contains("twice"),
        "{message}"
    );
    let path = write_gguf_with(dir.path(), &tiny, GgmlDType::F32, |_, tensors| {
        let extra = Tensor::zeros(32, DType::F32, &Device::Cpu).unwrap();
        let extra = QTensor::quantize(&extra, GgmlDType::F32).unwrap();
        tensors.push(("output_norm.weight".into(), extra));
    });
    let message = Gguf::open(&path).err().unwrap().to_string();
    assert!(
        message.contains("output_norm.weight") && message.contains("twice"),
        "{message}"
    );
}

#[test]
fn lists_are_bounded_together_whatever_the_file_holds() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = model(TinyModel::llama());
    // One byte each in the file, 32 in memory.
    let path = write_gguf_with(dir.path(), &tiny, GgmlDType::F32, |metadata, _| {
        for i in 0..5 {
            let list = Value::Array(vec![Value::U8(0); 1 << 20]);
            metadata.push((format!("list.{i}"), list));
        }
    });
    let message = Gguf::open(&path).err().unwrap().to_string();
    assert!(
        message.contains("list.") && message.contains("more than a model has"),
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
            assert!(
                message.contains("more than a model has") || message.contains("longer than"),
                "{at} {count}: {message}"
            );
        }
    }
}
