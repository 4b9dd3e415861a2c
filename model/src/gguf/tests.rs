use std::fs::File;

use candle_core::quantized::{
    GgmlDType, QTensor,
    gguf_file::{self, Value},
};
use candle_core::{DType, Device, Tensor};

use super::*;
use crate::testing::{TinyModel, write_tiny_model};
use crate::{Architecture, Decoder, LoadOptions, Weights};

pub(crate) fn model(base: TinyModel) -> TinyModel {
    TinyModel {
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        ..base
    }
}

pub(crate) fn write_gguf(dir: &Path, tiny: &TinyModel, dtype: GgmlDType) -> PathBuf {
    write_gguf_with(dir, tiny, dtype, |_, _| ())
}

/// Writes what llama.cpp's converter would make of a tiny model, rows of Llama's q and k in its order, after `change`.
pub(super) fn write_gguf_with(
    dir: &Path,
    tiny: &TinyModel,
    dtype: GgmlDType,
    change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<(String, QTensor)>),
) -> PathBuf {
    write_tiny_model(dir, tiny, 5).unwrap();
    let config = ModelConfig::load(dir).unwrap();
    let weights = Weights::open(dir).unwrap();
    let name = config.model_type.name();
    let key = |key: &str| format!("{name}.{key}");
    let number = |value: usize| Value::U32(value as u32);
    let strings =
        |values: &[&str]| Value::Array(values.iter().map(|v| Value::String((*v).into())).collect());
    let mut metadata: Vec<(String, Value)> = vec![
        ("general.architecture".into(), Value::String(name.into())),
        (key("block_count"), number(config.num_hidden_layers)),
        (
            key("context_length"),
            number(config.max_position_embeddings),
        ),
        (key("embedding_length"), number(config.hidden_size)),
        (key("feed_forward_length"), number(config.intermediate_size)),
        (
            key("attention.head_count"),
            number(config.num_attention_heads),
        ),
        (
            key("attention.head_count_kv"),
            number(config.num_key_value_heads),
        ),
        (key("attention.key_length"), number(config.head_dim)),
        (key("rope.freq_base"), Value::F32(config.rope_theta as f32)),
        (
            key("attention.layer_norm_rms_epsilon"),
            Value::F32(config.rms_norm_eps as f32),
        ),
        ("tokenizer.ggml.model".into(), Value::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::String("smollm".into())),
        (
            "tokenizer.ggml.tokens".into(),
            strings(&["<s>", "a", "b", "ab", "[PAD]"]),
        ),
        (
            "tokenizer.ggml.token_type".into(),
            Value::Array([3, 1, 1, 1, 5].map(Value::I32).to_vec()),
        ),
        ("tokenizer.ggml.merges".into(), strings(&["a b"])),
        ("tokenizer.ggml.eos_token_id".into(), Value::U32(0)),
    ];
    let mut tensors = Vec::new();
    for (name, shape) in config.parameter_shapes() {
        let tensor = weights.tensor(&name, DType::F32, &Device::Cpu).unwrap();
        let heads = match (config.model_type, &name) {
            (Architecture::Llama, n) if n.contains("q_proj") => Some(config.num_attention_heads),
            (Architecture::Llama, n) if n.contains("k_proj") => Some(config.num_key_value_heads),
            _ => None,
        };
        let tensor = if let Some(heads) = heads {
            // The converter's own words: reshape(heads, 2, half, ..).swapaxes(1, 2).
            let (half, rest) = (shape[0] / heads / 2, shape[1]);
            let halves = tensor.reshape((heads, 2, half, rest)).unwrap();
            let pairs = halves.transpose(1, 2).unwrap().contiguous().unwrap();
            pairs.reshape(shape.as_slice()).unwrap()
        } else {
            tensor
        };
        let dtype = if shape.len() > 1 {
            dtype
        } else {
            GgmlDType::F32
        };
        let stored = names::stored_name(&name).unwrap();
        tensors.push((stored, QTensor::quantize(&tensor, dtype).unwrap()));
    }
    change(&mut metadata, &mut tensors);
    let path = dir.join("model.gguf");
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    // Lists are written value by value.
    let mut file = std::io::BufWriter::new(File::create(&path).unwrap());
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    path
}

#[test]
fn a_file_gives_back_the_checkpoint_it_was_made_from() {
    for base in [TinyModel::llama(), TinyModel::qwen2(), TinyModel::qwen3()] {
        let tiny = model(base);
        let dir = tempfile::tempdir().unwrap();
        let path = write_gguf(dir.path(), &tiny, GgmlDType::F32);
        let gguf = Gguf::open(&path).unwrap();
        let expected = ModelConfig::load(dir.path()).unwrap();
        // f32 in the metadata.
        assert!((gguf.config().rms_norm_eps - expected.rms_norm_eps).abs() < 1e-12);
        let rounded = ModelConfig {
            rms_norm_eps: gguf.config().rms_norm_eps,
            ..expected.clone()
        };
        assert_eq!(gguf.config(), &rounded);
        let weights = Weights::open(dir.path()).unwrap();
        for (name, _) in expected.parameter_shapes() {
            let original = weights.tensor(&name, DType::F32, &Device::Cpu).unwrap();
            let read = gguf.tensor(&name).unwrap();
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(&read), flat(&original), "{name}");
        }
        // And the written config loads the model.
        let json = gguf.config_json().to_string();
        let config = ModelConfig::parse(json.as_bytes(), &path).unwrap();
        Decoder::load(&config, &weights, &LoadOptions::reference()).unwrap();
    }
}

#[test]
fn quantised_tensors_come_back_within_their_steps() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = model(TinyModel::llama());
    let path = write_gguf(dir.path(), &tiny, GgmlDType::Q8_0);
    let gguf = Gguf::open(&path).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    let name = "model.layers.1.self_attn.k_proj.weight";
    let original = weights.tensor(name, DType::F32, &Device::Cpu).unwrap();
    let size = |tensor: &Tensor| -> f32 {
        let elements = tensor.abs().unwrap().flatten_all().unwrap();
        elements.max(0).unwrap().to_scalar().unwrap()
    };
    let worst = size(&(gguf.tensor(name).unwrap() - &original).unwrap());
    let largest = size(&original);
    // Half a step of 1/127 of the block's largest, and f16 for the scale.
    assert!(worst > 0.0 && worst <= largest * 0.006, "{worst} {largest}");
}

#[test]
fn the_tokenizer_is_rebuilt_without_padding_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_gguf(dir.path(), &model(TinyModel::llama()), GgmlDType::F32);
    let tokenizer = Gguf::open(&path).unwrap().tokenizer().unwrap();
    let json = tokenizer.tokenizer_json().unwrap();
    assert_eq!(json["model"]["vocab"].as_object().unwrap().len(), 4);
    assert_eq!(json["added_tokens"][0]["content"], "<s>");
    assert_eq!(tokenizer.tokenizer_config_json()["eos_token"], "<s>");
    let unknown = GgufTokenizer {
        pre_tokenizer: "unheard-of".into(),
        ..tokenizer
    };
    assert_eq!(unknown.tokenizer_json(), None);
}
