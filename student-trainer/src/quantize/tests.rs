use std::{fs, path::Path};

use candle_core::{Device, Tensor};
use distill_model::{
    Base, Decoder, LoadOptions, ModelConfig, Weights,
    testing::{TinyModel, write_tiny_model},
};

use super::*;

fn write_source(dir: &Path) {
    write_source_of(dir, TinyModel::qwen2());
}

fn write_source_of(dir: &Path, model: TinyModel) {
    let model = TinyModel {
        vocab_size: 40,
        num_hidden_layers: 4,
        ..model
    };
    write_tiny_model(dir, &model, 9).unwrap();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
    });
    fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
}

fn hidden(dir: &Path, base: Base) -> Vec<f32> {
    let config = ModelConfig::load(dir).unwrap();
    let weights = Weights::open(dir).unwrap();
    let options = LoadOptions {
        base,
        ..LoadOptions::reference()
    };
    let decoder = Decoder::load(&config, &weights, &options).unwrap();
    let ids = Tensor::new(&[[3_u32, 1, 4, 1, 5]], &Device::Cpu).unwrap();
    let hidden = decoder.hidden_states(&ids).unwrap();
    hidden.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn what_is_written_computes_what_quantising_while_loading_computes() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    write_source(&source);
    let bf16 = QuantizeConfig {
        from: source,
        out: dir.path().join("bf16"),
        weights: StoredAs::Bf16,
        ..QuantizeConfig::default()
    };
    let plain = run(&bf16, &Shutdown::default()).unwrap();
    assert_eq!((plain.bytes, plain.layers), (plain.bf16_bytes, 4));
    let nf4 = QuantizeConfig {
        from: bf16.out.clone(),
        out: dir.path().join("nf4"),
        weights: StoredAs::FourBit,
        ..bf16.clone()
    };
    let small = run(&nf4, &Shutdown::default()).unwrap();
    assert!(small.bytes < small.bf16_bytes / 2, "{small:?}");
    assert_eq!(
        hidden(&nf4.out, Base::AsStored),
        hidden(&bf16.out, Base::QuantizeNf4)
    );
    assert!(nf4.out.join("tokenizer.json").is_file());
    // Twice is refused, and nothing else was left behind.
    assert!(run(&nf4, &Shutdown::default()).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn kept_layers_are_those_of_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    write_source(&source);
    let config = QuantizeConfig {
        from: source.clone(),
        out: dir.path().join("short"),
        keep_layers: Some("0,2-3".into()),
        weights: StoredAs::F32,
        ..QuantizeConfig::default()
    };
    assert_eq!(run(&config, &Shutdown::default()).unwrap().layers, 3);
    assert_eq!(ModelConfig::load(&config.out).unwrap().num_hidden_layers, 3);
    let (old, new) = (
        Weights::open(&source).unwrap(),
        Weights::open(&config.out).unwrap(),
    );
    for part in [
        "mlp.up_proj.weight",
        "self_attn.q_proj.bias",
        "input_layernorm.weight",
    ] {
        let (_, _, expected) = old.raw(&format!("model.layers.2.{part}")).unwrap();
        let (_, _, found) = new.raw(&format!("model.layers.1.{part}")).unwrap();
        assert_eq!(found, expected, "{part}");
    }
    let wrong = QuantizeConfig {
        out: dir.path().join("wrong"),
        keep_layers: Some("0-9".into()),
        ..config
    };
    let message = run(&wrong, &Shutdown::default()).unwrap_err().to_string();
    assert!(message.contains("no layer 9"), "{message}");
    assert!(!wrong.out.exists());
}

#[test]
fn kept_layers_keep_their_windows() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let settings = vec![
        ("use_sliding_window", true.into()),
        ("sliding_window", 3.into()),
        ("max_window_layers", 2.into()),
    ];
    let model = TinyModel {
        settings,
        ..TinyModel::qwen2()
    };
    write_source_of(&source, model);
    for (kept, windows) in [
        ("2-3", vec![Some(3); 2]),
        ("0,3", vec![None, Some(3)]),
        ("0-1", vec![None; 2]),
    ] {
        let config = QuantizeConfig {
            from: source.clone(),
            out: dir.path().join(kept),
            keep_layers: Some(kept.into()),
            weights: StoredAs::F32,
            ..QuantizeConfig::default()
        };
        run(&config, &Shutdown::default()).unwrap();
        assert_eq!(ModelConfig::load(&config.out).unwrap().windows, windows);
    }
}

#[test]
fn every_kind_of_four_bits_is_what_was_asked_for_and_skipped_linears_are_dense() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    write_source(&source);
    let config = QuantizeConfig {
        from: source.clone(),
        out: dir.path().join("fp4"),
        quant_type: FourBitKind::Fp4,
        double_quant: false,
        block_size: 128,
        compute_dtype: FloatType::F16,
        skip_modules: vec!["down_proj".into(), "model.layers.1.self_attn".into()],
        ..QuantizeConfig::default()
    };
    run(&config, &Shutdown::default()).unwrap();
    let weights = Weights::open(&config.out).unwrap();
    for (layer, part, four_bit) in [
        (0, "mlp.down_proj", false),
        (0, "self_attn.q_proj", true),
        (1, "self_attn.q_proj", false),
        (1, "mlp.up_proj", true),
    ] {
        let name = format!("model.layers.{layer}.{part}.weight");
        assert_eq!(Nf4Matrix::is_stored(&weights, &name), four_bit, "{name}");
        if four_bit {
            let matrix = Nf4Matrix::read(&weights, &name).unwrap();
            assert_eq!(
                (matrix.quant_type(), matrix.block_size()),
                (QuantType::Fp4, 128)
            );
            assert!(!matrix.is_double_quantized());
        }
    }
    let json: Value =
        serde_json::from_slice(&fs::read(config.out.join("config.json")).unwrap()).unwrap();
    let quantization = &json["quantization_config"];
    assert_eq!(quantization["bnb_4bit_quant_type"], "fp4");
    assert_eq!(quantization["bnb_4bit_compute_dtype"], "float16");
    assert_eq!(
        quantization["llm_int8_skip_modules"][2],
        "model.layers.1.self_attn"
    );
    // It can be used, and it is not quantised once more.
    hidden(&config.out, Base::QuantizeNf4);
    let again = QuantizeConfig {
        from: config.out.clone(),
        out: dir.path().join("again"),
        ..QuantizeConfig::default()
    };
    let message = run(&again, &Shutdown::default()).unwrap_err().to_string();
    assert!(message.contains("4-bit already"), "{message}");
    for (wrong, key) in [
        (
            QuantizeConfig {
                block_size: 48,
                ..again.clone()
            },
            "block_size",
        ),
        (
            QuantizeConfig {
                from: source,
                skip_modules: vec!["query".into()],
                ..again.clone()
            },
            "skip_modules",
        ),
    ] {
        let message = run(&wrong, &Shutdown::default()).unwrap_err().to_string();
        assert!(message.contains(key), "{message}");
    }
    assert!(!again.out.exists());
}

#[test]
fn the_old_name_of_four_bits_is_still_read() {
    let read = |text: &str| toml::from_str::<QuantizeConfig>(text).map(|config| config.weights);
    assert_eq!(read("weights = \"nf4\"").unwrap(), StoredAs::FourBit);
    assert_eq!(read("weights = \"4bit\"").unwrap(), StoredAs::FourBit);
    assert!(read("weights = \"int8\"").is_err());
}
