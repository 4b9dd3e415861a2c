//! Exported GGUF files against the gguf package's description of the same model, and against base and adapter side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::Path,
};

use candle_core::{
    DType, Device, Tensor,
    quantized::gguf_file::{Content, Value as Stored},
};
use distill_model::{
    Decoder, Gguf, LoadOptions, TokenMatrix, Weights,
    testing::{TinyModel, write_tiny_model},
};
use distill_text::TokenizerFiles;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    tests::{fixtures, scaled_adapter},
    *,
};
use crate::{
    run::AdapterConfig,
    test_models::{logged, set_in_config},
};

/// A base of the fixtures' models with the fixtures' tokenizer.
fn base(dir: &Path, name: &str) -> PathBuf {
    super::tests::base(dir, &format!("models/{name}"))
}

fn config(base: &Path, out: PathBuf, quant: GgufQuant) -> ExportConfig {
    ExportConfig {
        base: base.to_owned(),
        out,
        format: ExportFormat::Gguf,
        quant,
        ..ExportConfig::default()
    }
}

fn export(config: &ExportConfig) -> Summary {
    run(config, &Shutdown::default()).unwrap()
}

fn refused(config: &ExportConfig) -> String {
    run(config, &Shutdown::default()).unwrap_err().to_string()
}

fn logits(path: &Path, ids: &Tensor) -> Tensor {
    let weights = Weights::open(path).unwrap();
    let options = LoadOptions::reference();
    let decoder = Decoder::load(&weights.model_config().unwrap(), &weights, &options).unwrap();
    let hidden = decoder.hidden_states(ids).unwrap().squeeze(0).unwrap();
    match decoder.head_matrix() {
        TokenMatrix::Packed(head) => head.product(&hidden).unwrap(),
        TokenMatrix::Dense(head) => hidden.matmul(&head.tensor().t().unwrap()).unwrap(),
    }
    .unsqueeze(0)
    .unwrap()
}

fn rms(tensor: &Tensor) -> f32 {
    let mean = tensor.sqr().unwrap().mean_all().unwrap();
    mean.to_scalar::<f32>().unwrap().sqrt()
}

/// A value with its type, as the fixtures have it.
fn described(value: &Stored) -> serde_json::Value {
    match value {
        Stored::U32(value) => json!([["UINT32"], value]),
        Stored::F32(value) => json!([["FLOAT32"], value]),
        Stored::Bool(value) => json!([["BOOL"], value]),
        Stored::String(text) => json!([["STRING"], text]),
        Stored::Array(values) => {
            let parts: Vec<_> = values.iter().map(described).collect();
            let values: Vec<_> = parts.iter().map(|part| part[1].clone()).collect();
            let kind = match values.first() {
                Some(first) if first.is_string() => "STRING",
                _ => "INT32",
            };
            json!([["ARRAY", kind], values])
        }
        Stored::I32(value) => json!([["INT32"], value]),
        other => panic!("{other:?} is written nowhere"),
    }
}

#[test]
fn a_file_says_what_the_gguf_package_says() {
    for model in ["llama-gqa", "qwen2-untied"] {
        for (quant, name) in [(GgufQuant::F16, "f16"), (GgufQuant::Q8_0, "q8_0")] {
            let dir = tempfile::tempdir().unwrap();
            let config = config(&base(dir.path(), model), dir.path().join("out"), quant);
            export(&config);
            let fixture = fixtures().join(format!("gguf-export/{model}-{name}.json"));
            let expected: serde_json::Value =
                serde_json::from_slice(&fs::read(fixture).unwrap()).unwrap();
            let mut file = File::open(config.out.join("model.gguf")).unwrap();
            let content = Content::read(&mut file).unwrap();

            let keys: BTreeSet<&str> = content.metadata.keys().map(String::as_str).collect();
            let said = expected["metadata"].as_object().unwrap();
            let mut wanted: BTreeSet<&str> = said.keys().map(String::as_str).collect();
            // Always said here.
            wanted.insert("tokenizer.ggml.add_bos_token");
            assert_eq!(keys, wanted, "{model}");
            for (key, value) in said {
                let found = described(&content.metadata[key]);
                // f32 in JSON has the digits of the f64 that it is.
                match (found[1].as_f64(), value[1].as_f64()) {
                    (Some(found), Some(value)) => assert_eq!(found as f32, value as f32, "{key}"),
                    _ => assert_eq!(&found, value, "{model} {key}"),
                }
                assert_eq!(found[0], value[0], "{key}");
            }

            let tensors = expected["tensors"].as_object().unwrap();
            assert_eq!(content.tensor_infos.len(), tensors.len());
            for (tensor, expected) in tensors {
                let found = content.tensor(&mut file, tensor, &Device::Cpu).unwrap();
                let kind = format!("{:?}", found.dtype()).to_uppercase();
                let digest = hex::encode(Sha256::digest(found.data().unwrap()));
                assert_eq!(
                    &json!([kind, found.shape().dims(), digest]),
                    expected,
                    "{model} {tensor}"
                );
            }
        }
    }
}

#[test]
fn an_exported_file_computes_what_base_and_adapter_do_in_peft() {
    for name in ["patterns", "all-linear"] {
        let dir = tempfile::tempdir().unwrap();
        let adapter = fixtures().join("peft").join(name);
        let expected =
            candle_core::safetensors::load(adapter.join("expected.safetensors"), &Device::Cpu)
                .unwrap();
        let ids = expected["ids"].to_dtype(DType::U32).unwrap();
        let model = AdapterConfig::read(&adapter)
            .unwrap()
            .base_model_name_or_path;
        let base = base(dir.path(), model.unwrap().trim_start_matches("models/"));
        let full = &expected["logits"];
        // Rounding moves a weight by up to 1 of 2048 of itself (f16), or of a block's largest by 1 of 254 (q8_0) or 1 of 32 (q5_0,
        // which rows of 64 have for q4_k_m), and logits of two random layers by some six times that.
        for (quant, tolerance) in [
            (GgufQuant::F16, 0.002),
            (GgufQuant::Q8_0, 0.04),
            (GgufQuant::Q4KM, 0.3),
        ] {
            let config = ExportConfig {
                adapter: Some(adapter.clone()),
                ..config(&base, dir.path().join(quant.name()), quant)
            };
            let summary = export(&config);
            assert!(summary.merged > 2 && summary.merged < summary.tensors);
            assert_eq!(summary.dtype, quant.name());
            assert_eq!(summary.surviving.is_some(), quant == GgufQuant::F16);
            let found = logits(&config.out.join("model.gguf"), &ids);
            let relative = rms(&(&found - full).unwrap()) / rms(full);
            assert!(relative < tolerance, "{name} {quant:?}: {relative}");
            assert!(relative > 0.0);
            let files: BTreeSet<_> = fs::read_dir(&config.out)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(files, ["Modelfile", "model.gguf"].map(Into::into).into());
        }
    }
}

/// f16 files against the merged f16 checkpoint: the same numbers in another container.
#[test]
fn an_f16_file_computes_what_the_f16_directory_does() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path(), "qwen2-untied");
    let file = ExportConfig {
        adapter: Some(fixtures().join("peft/patterns")),
        ..config(&base, dir.path().join("gguf"), GgufQuant::F16)
    };
    let directory = ExportConfig {
        format: ExportFormat::Hf,
        dtype: ComputeDtype::F16,
        out: dir.path().join("hf"),
        ..file.clone()
    };
    export(&file);
    export(&directory);
    let ids = Tensor::arange(3_u32, 60, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let difference =
        (logits(&file.out.join("model.gguf"), &ids) - logits(&directory.out, &ids)).unwrap();
    // Norms and biases stay f32 in a GGUF file, and are f16 in the directory.
    assert!(rms(&difference) < 2e-3, "{}", rms(&difference));
}

#[test]
fn a_file_has_the_tokens_of_its_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path(), "llama-gqa");
    let config = config(&base, dir.path().join("out"), GgufQuant::Q8_0);
    export(&config);
    let own = TokenizerFiles::open(&base).unwrap();
    let path = config.out.join("model.gguf");
    let texts = Gguf::open(&path).unwrap().tokenizer_files().unwrap();
    let read = TokenizerFiles::from_texts(&path, texts).unwrap();
    assert_eq!(read.eos_id(), own.eos_id());
    for text in [
        "The mill stood where the river bends.",
        "I'll say THEY'RE late   \r\n\t 1234",
        "<|im_start|>user\nHi<|im_end|><note>a",
        "河边 e\u{301} \u{a0}🚢",
        "",
    ] {
        assert_eq!(
            read.encode(text).unwrap().ids,
            own.encode(text).unwrap().ids,
            "{text:?}"
        );
    }
    let messages = json!([{"role": "user", "content": "Hi"}]);
    assert_eq!(
        read.render_chat(&messages, true).unwrap(),
        own.render_chat(&messages, true).unwrap()
    );
    let modelfile = fs::read_to_string(config.out.join("Modelfile")).unwrap();
    assert!(modelfile.starts_with("FROM ./model.gguf\n"), "{modelfile}");
    assert!(
        modelfile.contains("PARAMETER stop \"<|im_end|>\"\n"),
        "{modelfile}"
    );
    // And what was exported can be exported.
    let again = ExportConfig {
        base: path,
        out: dir.path().join("again"),
        ..config
    };
    export(&again);
    let [first, second] = [&again.base, &again.out.join("model.gguf")]
        .map(|path| Gguf::open(path).unwrap().tokenizer().unwrap());
    assert_eq!(first, second);
}

#[test]
fn special_ids_come_from_config_json_where_the_tokenizer_names_none() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path(), "qwen2-untied");
    let written = |out: &str| {
        let config = config(&base, dir.path().join(out), GgufQuant::F16);
        export(&config);
        Gguf::open(&config.out.join("model.gguf"))
            .unwrap()
            .tokenizer()
            .unwrap()
    };
    assert_eq!(written("unsaid").bos_id, None);
    set_in_config(&base, "bos_token_id", json!(380));
    let tokenizer = written("said");
    assert_eq!((tokenizer.bos_id, tokenizer.add_bos), (Some(380), false));
    // A post-processor puts it before every text.
    let path = base.join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let begin = json!({"SpecialToken": {"id": "<|im_start|>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let token =
        json!({"<|im_start|>": {"id": "<|im_start|>", "ids": [381], "tokens": ["<|im_start|>"]}});
    json["post_processor"] = json!({"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text], "special_tokens": token});
    fs::write(&path, json.to_string()).unwrap();
    let tokenizer = written("put");
    assert_eq!((tokenizer.bos_id, tokenizer.add_bos), (Some(381), true));
    json["post_processor"]["single"] = json!([begin, begin, text]);
    fs::write(&path, json.to_string()).unwrap();
    let message = refused(&config(&base, dir.path().join("two"), GgufQuant::F16));
    assert!(message.contains("2 tokens before every text"), "{message}");
}

/// Everything that a written adapter says, applied as llama.cpp does: alpha / rank B A, rows of q and k in its order.
#[test]
fn a_written_adapter_is_the_update_of_its_base() {
    for (adapter, model) in [
        ("patterns", TinyModel::qwen2()),
        ("patterns", TinyModel::llama()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let base = base(dir.path(), "qwen2-untied");
        if model.architecture == distill_model::Architecture::Llama {
            write_tiny_model(
                &base,
                &TinyModel {
                    vocab_size: 384,
                    intermediate_size: 96,
                    ..model
                },
                3,
            )
            .unwrap();
        }
        let adapter = fixtures().join("peft").join(adapter);
        let config = ExportConfig {
            adapter: Some(adapter.clone()),
            format: ExportFormat::GgufLora,
            ..config(&base, dir.path().join("out"), GgufQuant::F16)
        };
        let summary = export(&config);
        let model = ModelConfig::load(&base).unwrap();
        let mut file = File::open(config.out.join("adapter.gguf")).unwrap();
        let content = Content::read(&mut file).unwrap();
        assert_eq!(content.tensor_infos.len(), 2 * summary.merged);
        let alpha = f64::from(content.metadata["adapter.lora.alpha"].to_f32().unwrap());
        let mut read = |name: String| {
            content
                .tensor(&mut file, &name, &Device::Cpu)
                .unwrap()
                .dequantize(&Device::Cpu)
                .unwrap()
        };

        let adapters = Adapters::read(&adapter, &model).unwrap();
        let parts = BTreeMap::from([
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ]);
        let mut looked_at = 0;
        for (name, _) in adapters.iter() {
            let update = adapters.update(name).unwrap().unwrap();
            let module = name.trim_end_matches(".weight");
            let (layer, part) = module
                .trim_start_matches("model.layers.")
                .split_once('.')
                .unwrap();
            let stored = format!("blk.{layer}.{}.weight", parts[part]);
            let (a, b) = (
                read(format!("{stored}.lora_a")),
                read(format!("{stored}.lora_b")),
            );
            let rank = b.dim(1).unwrap() as f64;
            let mut written = (b.matmul(&a).unwrap() * (alpha / rank)).unwrap();
            let heads = match part {
                "self_attn.q_proj" => model.num_attention_heads,
                "self_attn.k_proj" => model.num_key_value_heads,
                _ => 0,
            };
            if heads > 0 && model.model_type == distill_model::Architecture::Llama {
                // The converter's reshape(heads, 2, half, ..).swapaxes(1, 2), undone.
                let (rows, columns) = written.dims2().unwrap();
                let pairs = written
                    .reshape((heads, rows / heads / 2, 2, columns))
                    .unwrap();
                written = pairs
                    .transpose(1, 2)
                    .unwrap()
                    .contiguous()
                    .unwrap()
                    .reshape((rows, columns))
                    .unwrap();
            }
            let difference = rms(&(written - &update).unwrap());
            // Factors in f32.
            assert!(difference <= 1e-6 * rms(&update), "{name}: {difference}");
            looked_at += 1;
        }
        assert_eq!(looked_at, summary.merged);
        let modelfile = fs::read_to_string(config.out.join("Modelfile")).unwrap();
        let expected = format!(
            "FROM {}\nADAPTER ./adapter.gguf\n",
            base.canonicalize().unwrap().display()
        );
        assert!(modelfile.starts_with(&expected), "{modelfile}");
    }
}

#[test]
fn a_training_that_f16_rounds_away_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path(), "qwen2-untied");
    let adapter = scaled_adapter(dir.path(), 0.0005);
    let config = ExportConfig {
        adapter: Some(adapter),
        ..config(&base, dir.path().join("out"), GgufQuant::F16)
    };
    let log = logged(|| drop(export(&config)));
    assert!(
        log.contains("most of the training is lost; --format gguf-lora"),
        "{log}"
    );
}

#[test]
fn a_window_that_llama_cpp_does_not_look_at_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path(), "qwen2-untied");
    write_tiny_model(
        &base,
        &TinyModel {
            vocab_size: 384,
            ..TinyModel::mistral()
        },
        3,
    )
    .unwrap();
    let config = config(&base, dir.path().join("out"), GgufQuant::Q8_0);
    let log = logged(|| drop(export(&config)));
    assert!(log.contains("latest 9 positions"), "{log}");
    let read = Gguf::open(&config.out.join("model.gguf")).unwrap();
    assert_eq!(read.config().windows, [Some(9); 2]);
}

#[test]
fn what_cannot_be_a_gguf_file_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path(), "qwen2-untied");
    let out = dir.path().join("out");
    let plain = config(&base, out.clone(), GgufQuant::F16);
    let without = ExportConfig {
        format: ExportFormat::GgufLora,
        ..plain.clone()
    };
    assert!(refused(&without).contains("--adapter"));
    let stop = Shutdown::default();
    stop.request();
    assert!(run(&plain, &stop).unwrap_err().is_stop());
    let foreign = ExportConfig {
        adapter: Some(fixtures().join("peft/all-linear")),
        base: fixtures().join("models/llama-gqa"),
        format: ExportFormat::GgufLora,
        ..plain.clone()
    };
    run(&foreign, &Shutdown::default()).unwrap_err();
    // A tokenizer that llama.cpp has no name for.
    let path = base.join("tokenizer.json");
    let own = fs::read(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&own).unwrap();
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({"Regex": "\\s+"});
    fs::write(&path, json.to_string()).unwrap();
    let message = refused(&plain);
    assert!(
        message.contains("splits text") && message.contains("--format hf"),
        "{message}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // What is there stays.
    fs::write(&path, own).unwrap();
    fs::create_dir(&out).unwrap();
    fs::write(out.join("model.gguf"), "mine").unwrap();
    assert!(refused(&plain).contains("not empty"));
    assert_eq!(fs::read_to_string(out.join("model.gguf")).unwrap(), "mine");
}
