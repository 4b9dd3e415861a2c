//! Written files against what they were written from, and against the gguf package's files in tests/fixtures/gguf.

use std::fs::File;
use std::io::{BufWriter, Write};

use candle_core::quantized::{GgmlDType, gguf_file};
use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::decoder_tests::{load, logits_of};
use super::*;
use crate::test_support::largest_difference;
use crate::testing::{TinyModel, write_tiny_model};
use crate::{LoadOptions, RopeScaling, Weights};

/// Wide enough for the blocks of k-quants.
fn wide(base: TinyModel) -> TinyModel {
    TinyModel {
        hidden_size: 256,
        intermediate_size: 512,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        ..base
    }
}

/// A tokenizer of three tokens and a control token.
fn tokenizer() -> GgufTokenizer {
    let json = json!({
        "added_tokens": [{"id": 0, "content": "<s>", "special": true}],
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer::byte_level(true),
        "model": {"type": "BPE", "vocab": {"a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]], "ignore_merges": false},
    });
    GgufTokenizer {
        eos_id: Some(0),
        chat_template: Some("{{ messages }}".into()),
        ..GgufTokenizer::of_json(&json, 96).unwrap()
    }
}

fn save(file: &GgufFile, path: &Path) {
    let mut out = BufWriter::new(File::create(path).unwrap());
    file.write(&mut out).unwrap();
    out.flush().unwrap();
}

/// Writes the model in `dir` beside it.
fn write(dir: &Path, quant: GgufQuant) -> PathBuf {
    let weights = Weights::open(dir).unwrap();
    let config = ModelConfig::load(dir).unwrap();
    let mut file = GgufFile::model(&config, "tiny", &tokenizer(), quant).unwrap();
    let mut bytes = 0;
    for (name, _) in config.parameter_shapes() {
        let tensor = weights.tensor(&name, DType::F32, &Device::Cpu).unwrap();
        bytes += file.push(&name, &tensor).unwrap();
    }
    assert_eq!(bytes, GgufFile::bytes_of(&config, quant));
    let path = dir.join("written.gguf");
    save(&file, &path);
    path
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_written_file_gives_back_the_model_it_was_written_from() {
    for base in [
        TinyModel::llama(),
        TinyModel::qwen2(),
        TinyModel::qwen3(),
        TinyModel::mistral(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_model(dir.path(), &wide(base), 5).unwrap();
        let expected = ModelConfig::load(dir.path()).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        // Of a matrix as a whole, what rounding to these types moves.
        for (quant, types, tolerance) in [
            (GgufQuant::F16, "F16", 3e-4),
            (GgufQuant::Q8_0, "Q8_0", 0.01),
            (GgufQuant::Q4KM, "Q4_K, Q6_K", 0.1),
        ] {
            let path = write(dir.path(), quant);
            let gguf = Gguf::open(&path).unwrap();
            let found = gguf.quantisation();
            assert!(found.contains(types), "{found}");
            let rounded = ModelConfig {
                rms_norm_eps: f64::from(expected.rms_norm_eps as f32),
                ..expected.clone()
            };
            assert_eq!(gguf.config(), &rounded);
            assert_eq!(gguf.tokenizer().unwrap(), tokenizer());
            for (name, shape) in expected.parameter_shapes() {
                let original = flat(&weights.tensor(&name, DType::F32, &Device::Cpu).unwrap());
                let read = flat(&gguf.tensor(&name).unwrap());
                let squares =
                    |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
                let moved = squares(&mut read.iter().zip(&original).map(|(a, b)| a - b));
                let relative = (moved / squares(&mut original.iter().copied())).sqrt();
                let tolerance = if shape.len() > 1 { tolerance } else { 0.0 };
                assert!(relative <= tolerance, "{name} {quant:?}: {relative}");
            }
        }
    }
}

#[test]
fn k_quants_are_where_llama_cpp_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let base = wide(TinyModel::llama());
    write_tiny_model(
        dir.path(),
        &TinyModel {
            num_hidden_layers: 9,
            ..base
        },
        5,
    )
    .unwrap();
    let gguf = Gguf::open(&write(dir.path(), GgufQuant::Q4KM)).unwrap();
    let of = |name: &str| gguf.type_name(name).unwrap();
    assert_eq!(of("model.embed_tokens.weight"), "Q6_K");
    assert_eq!(of("model.layers.0.mlp.down_proj.weight"), "Q6_K");
    assert_eq!(of("model.layers.1.mlp.down_proj.weight"), "Q4_K");
    assert_eq!(of("model.layers.3.self_attn.v_proj.weight"), "Q6_K");
    assert_eq!(of("model.layers.8.self_attn.k_proj.weight"), "Q4_K");
    assert_eq!(of("model.norm.weight"), "F32");
}

#[test]
fn llama3_angles_are_written_as_factors() {
    let rope = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 200});
    let tiny = TinyModel {
        settings: vec![("rope_scaling", rope)],
        ..TinyModel::llama()
    };
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path(), &tiny, 5).unwrap();
    let expected = ModelConfig::load(dir.path()).unwrap();
    let path = write(dir.path(), GgufQuant::F16);
    let read = Gguf::open(&path).unwrap().config().clone();
    assert!(matches!(read.rope_scaling, RopeScaling::LongRope { .. }));
    for pair in 0..expected.head_dim / 2 {
        let omega = expected
            .rope_theta
            .powf(-2.0 * pair as f64 / expected.head_dim as f64);
        let relative =
            read.rope_scaling.scale(pair, omega) / expected.rope_scaling.scale(pair, omega) - 1.0;
        // A factor is rounded to f32 once: by half of its last place.
        assert!(
            relative.abs() <= f64::from(f32::EPSILON) / 2.0,
            "{pair}: {relative:e}"
        );
    }
    // What has been read so is written so.
    let again = GgufFile::model(&read, "again", &tokenizer(), GgufQuant::F16).unwrap();
    let path = dir.path().join("factors.gguf");
    save(&again, &path);
    let content = gguf_file::Content::read(&mut File::open(&path).unwrap()).unwrap();
    assert_eq!(
        content.tensor_infos["rope_freqs.weight"].ggml_dtype,
        GgmlDType::F32
    );
}

#[test]
fn an_f16_file_computes_what_its_model_does() {
    for base in [
        TinyModel::llama(),
        TinyModel::qwen2(),
        TinyModel::qwen3(),
        TinyModel::mistral(),
    ] {
        // Weights that f16 holds exactly.
        let tiny = TinyModel {
            dtype: DType::F16,
            ..wide(base)
        };
        let dir = tempfile::tempdir().unwrap();
        write_tiny_model(dir.path(), &tiny, 5).unwrap();
        let ids: Vec<u32> = (0..40).map(|i| (i * 7) % 96).collect();
        let ids = Tensor::from_vec(ids, (1, 40), &Device::Cpu).unwrap();
        let expected = logits_of(&load(dir.path(), &LoadOptions::reference()), &ids);
        let path = write(dir.path(), GgufQuant::F16);
        let read = logits_of(&load(&path, &LoadOptions::reference()), &ids);
        // The same products of the same numbers; an epsilon in f32 moves a norm by 1e-14.
        let difference = largest_difference(&read, &expected);
        assert!(
            difference < 1e-6,
            "{}: {difference:e}",
            tiny.architecture.name()
        );
    }
}

/// The gguf package wrote these, with llama.cpp's converter's order of rows.
#[test]
fn files_of_the_gguf_package_are_written_again_byte_for_byte() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf");
    for name in ["llama", "qwen2", "llama3", "mistral"] {
        let path = root.join(name).join("model.gguf");
        let original = Gguf::open(&path).unwrap();
        let tokenizer = original.tokenizer().unwrap();
        let mut file =
            GgufFile::model(original.config(), name, &tokenizer, GgufQuant::F16).unwrap();
        for (name, _) in original.config().parameter_shapes() {
            file.push(&name, &original.tensor(&name).unwrap()).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let written = dir.path().join("written.gguf");
        save(&file, &written);
        let [mut a, mut b] = [&path, &written].map(|path| File::open(path).unwrap());
        let [expected, found] =
            [&mut a, &mut b].map(|file| gguf_file::Content::read(file).unwrap());
        assert_eq!(
            expected.tensor_infos.len(),
            found.tensor_infos.len(),
            "{name}"
        );
        for tensor in expected.tensor_infos.keys() {
            let expected = expected.tensor(&mut a, tensor, &Device::Cpu).unwrap();
            let found = found.tensor(&mut b, tensor, &Device::Cpu).unwrap();
            assert_eq!(expected.dtype(), found.dtype(), "{tensor}");
            assert_eq!(expected.shape(), found.shape(), "{tensor}");
            assert!(
                expected.data().unwrap() == found.data().unwrap(),
                "{name} {tensor}"
            );
        }
        for (key, value) in &expected.metadata {
            // The converter says it for llama alone, this fixture for all.
            if key == "qwen2.vocab_size" {
                continue;
            }
            let found = found.metadata.get(key).map(|found| format!("{found:?}"));
            // Numbers and texts, and the types that they have.
            assert_eq!(found, Some(format!("{value:?}")), "{name} {key}");
        }
    }
}

#[test]
fn a_tokenizer_comes_back_from_its_own_tokenizer_json() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf");
    for name in ["llama", "qwen2"] {
        let original = Gguf::open(&root.join(name).join("model.gguf")).unwrap();
        let tokenizer = original.tokenizer().unwrap();
        let json = tokenizer.tokenizer_json().unwrap();
        let again = GgufTokenizer::of_json(&json, tokenizer.tokens.len()).unwrap();
        let expected = GgufTokenizer {
            bos_id: None,
            eos_id: None,
            pad_id: None,
            unk_id: None,
            add_bos: false,
            chat_template: None,
            ..tokenizer
        };
        assert!(again == expected, "{name}");
    }
}

#[test]
fn tokens_have_the_types_that_llama_cpp_gives_them() {
    let added = |id: u32, content: &str, special: bool| json!({"id": id, "content": content, "special": special});
    let json = json!({
        "added_tokens": [added(1, "<|end|>", false), added(2, "two words", false), added(4, "\u{2581}\u{2581}", false), added(5, "[X]", true)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": pre_tokenizer::byte_level(true),
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]},
    });
    let tokenizer = GgufTokenizer::of_json(&json, 7).unwrap();
    assert_eq!(
        tokenizer.tokens,
        ["a", "<|end|>", "two words", "[PAD3]", "  ", "[X]", "[PAD6]"]
    );
    assert_eq!(
        (tokenizer.special, tokenizer.added, tokenizer.unused),
        (vec![1, 5], vec![2, 4], vec![3, 6])
    );
    assert_eq!(tokenizer.merges, ["a a"]);
    let message = GgufTokenizer::of_json(&json, 5).unwrap_err().to_string();
    assert!(
        message.contains("id 5") && message.contains("5 rows"),
        "{message}"
    );
}

#[test]
fn an_adapter_is_written_with_its_rows_in_order() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path(), &TinyModel::llama(), 5).unwrap();
    let config = ModelConfig::load(dir.path()).unwrap();
    let mut file = GgufFile::adapter(&config, "tiny", 32.0).unwrap();
    let a = Tensor::arange(0_f32, 128.0, &Device::Cpu)
        .unwrap()
        .reshape((2, 64))
        .unwrap();
    let b = Tensor::arange(0_f32, 128.0, &Device::Cpu)
        .unwrap()
        .reshape((64, 2))
        .unwrap();
    file.push_adapter("model.layers.1.self_attn.q_proj.weight", &a, &b)
        .unwrap();
    let path = dir.path().join("adapter.gguf");
    save(&file, &path);
    let mut opened = File::open(&path).unwrap();
    let content = gguf_file::Content::read(&mut opened).unwrap();
    let text = |key: &str| content.metadata[key].to_string().unwrap().clone();
    assert_eq!(text("general.type"), "adapter");
    assert_eq!(text("adapter.type"), "lora");
    assert_eq!(text("general.architecture"), "llama");
    assert_eq!(
        content.metadata["adapter.lora.alpha"].to_f32().unwrap(),
        32.0
    );
    let mut read = |name: &str| {
        let tensor = content.tensor(&mut opened, name, &Device::Cpu).unwrap();
        tensor.dequantize(&Device::Cpu).unwrap()
    };
    assert_eq!(flat(&read("blk.1.attn_q.weight.lora_a")), flat(&a));
    let stored = read("blk.1.attn_q.weight.lora_b").to_vec2::<f32>().unwrap();
    let rows = b.to_vec2::<f32>().unwrap();
    // Heads of 16 rows: 0 and 8 are neighbours.
    assert_eq!(
        (&stored[0], &stored[1], &stored[2]),
        (&rows[0], &rows[8], &rows[1])
    );
    // A model's reader says what it is.
    let message = Gguf::open(&path).err().unwrap().to_string();
    assert!(message.contains("adapter"), "{message}");
}

#[test]
fn what_a_file_cannot_say_is_refused_by_name() {
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    let with = |base: TinyModel, settings: &[(&'static str, serde_json::Value)]| TinyModel {
        settings: settings.to_vec(),
        ..base
    };
    let windows = [
        ("use_sliding_window", json!(true)),
        ("sliding_window", json!(8)),
        ("max_window_layers", json!(1)),
    ];
    for (tiny, expected) in [
        (TinyModel::smollm3(), "family smollm3"),
        (
            with(TinyModel::llama(), &[("rope_scaling", linear)]),
            "RoPE scaling `linear`",
        ),
        (
            with(TinyModel::qwen2(), &[("rope_scaling", llama3)]),
            "RoPE scaling `llama3` of a qwen2 model",
        ),
        (with(TinyModel::qwen2(), &windows), "in some of the layers"),
        (
            with(TinyModel::llama(), &[("attention_bias", json!(true))]),
            "attention_bias",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_model(dir.path(), &tiny, 5).unwrap();
        let config = ModelConfig::load(dir.path()).unwrap();
        let refused = [
            GgufFile::model(&config, "x", &tokenizer(), GgufQuant::F16).err(),
            GgufFile::adapter(&config, "x", 1.0).err(),
        ];
        for refused in refused {
            let message = refused.unwrap().to_string();
            assert!(
                message.contains(expected) && message.contains("--format hf"),
                "{message}"
            );
        }
    }
}

#[test]
fn tokenizers_without_a_name_are_refused_with_what_they_do() {
    let tokenizer = |change: serde_json::Value| {
        let mut json = json!({
            "added_tokens": [], "normalizer": null, "pre_tokenizer": pre_tokenizer::byte_level(true),
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        });
        for (key, value) in change.as_object().unwrap() {
            json[key] = value.clone();
        }
        json
    };
    for (change, expected) in [
        (
            json!({"model": {"type": "WordLevel", "vocab": {"a": 0}}}),
            "type WordLevel",
        ),
        (
            json!({"model": {"type": "BPE", "vocab": {"a": 0}, "byte_fallback": true}}),
            "sentencepiece",
        ),
        (
            json!({"pre_tokenizer": {"type": "WhitespaceSplit"}}),
            "WhitespaceSplit",
        ),
        (json!({"normalizer": {"type": "Lowercase"}}), "Lowercase"),
        (json!({"model": 7}), "no type"),
    ] {
        let message = GgufTokenizer::of_json(&tokenizer(change), 4)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(expected) && message.contains("convert_hf_to_gguf.py"),
            "{message}"
        );
    }
}

#[test]
fn values_that_a_type_has_no_number_for_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path(), &TinyModel::llama(), 5).unwrap();
    let config = ModelConfig::load(dir.path()).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let push = |quant: GgufQuant, value: f32| {
        let mut file = GgufFile::model(&config, "x", &tokenizer(), quant).unwrap();
        let tensor = Tensor::full(value, (128, 64), &Device::Cpu).unwrap();
        file.push(name, &tensor).map_err(|e| e.to_string())
    };
    push(GgufQuant::F16, 65504.0).unwrap();
    let message = push(GgufQuant::F16, 1e5).unwrap_err();
    assert!(
        message.contains(name) && message.contains("--quant q8_0"),
        "{message}"
    );
    push(GgufQuant::Q8_0, 1e5).unwrap();
    for value in [f32::NAN, f32::INFINITY] {
        let message = push(GgufQuant::Q4KM, value).unwrap_err();
        assert!(message.contains("damaged"), "{message}");
    }
}
