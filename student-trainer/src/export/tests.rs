//! Exported models against base and adapter computed side by side, over dense and 4-bit bases.

use std::{fs, path::Path};

use candle_core::{DType, Device, Tensor};
use distill_model::{Decoder, LoadOptions, LoraConfig, Weights};

use super::*;
use crate::{
    config::Quantize,
    quantize::{self, FourBitKind, QuantizeConfig},
    run::{AdapterConfig, load_adapter},
    student::{Place, StudentFiles},
    test_models::{config_json, logged},
};

pub(super) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A base of the fixtures with the fixtures' tokenizer.
pub(super) fn base(dir: &Path, name: &str) -> PathBuf {
    let base = dir.join("base");
    copy(&fixtures().join(name), &base);
    copy(&fixtures().join("tokenizer"), &base);
    base
}

fn logits(dir: &Path, lora: Option<(LoraConfig, &Path)>, ids: &Tensor) -> Tensor {
    let options = LoadOptions {
        lora: lora.as_ref().map(|(lora, _)| lora.clone()),
        ..LoadOptions::reference()
    };
    let config = ModelConfig::load(dir).unwrap();
    let decoder = Decoder::load(&config, &Weights::open(dir).unwrap(), &options).unwrap();
    if let Some((_, adapter)) = lora {
        load_adapter(adapter, &decoder.parameters()).unwrap();
    }
    let hidden = decoder.hidden_states(ids).unwrap();
    hidden
        .broadcast_matmul(&decoder.head().unwrap().t().unwrap())
        .unwrap()
}

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).unwrap().abs().unwrap();
    difference.max_all().unwrap().to_scalar().unwrap()
}

fn expected(directory: &Path) -> (Tensor, Tensor) {
    let path = directory.join("expected.safetensors");
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let ids = tensors["ids"].to_dtype(DType::U32).unwrap();
    (ids, tensors.remove("logits").unwrap())
}

#[test]
fn an_exported_model_answers_like_base_and_adapter_in_peft() {
    for name in ["patterns", "expression", "all-linear", "layers"] {
        let dir = tempfile::tempdir().unwrap();
        let adapter = fixtures().join("peft").join(name);
        let (ids, expected) = expected(&adapter);
        let model = AdapterConfig::read(&adapter).unwrap();
        let base = base(
            dir.path(),
            model.base_model_name_or_path.as_deref().unwrap(),
        );
        // Logits of -10..10 with a standard deviation of 2; bf16 keeps 8 bits of every weight, f16 11.
        for (dtype, tolerance) in [
            (ComputeDtype::F32, 1e-4),
            (ComputeDtype::F16, 0.03),
            (ComputeDtype::Auto, 0.03),
            (ComputeDtype::Bf16, 0.3),
        ] {
            let config = ExportConfig {
                base: base.clone(),
                adapter: Some(adapter.clone()),
                out: dir.path().join(format!("{dtype:?}")),
                dtype,
                max_shard_bytes: 60_000,
                ..ExportConfig::default()
            };
            let summary = run(&config, &Shutdown::default()).unwrap();
            assert!(summary.merged > 2 && summary.merged < summary.tensors);
            let difference = max_difference(&logits(&config.out, None, &ids), &expected);
            assert!(difference < tolerance, "{name} {dtype:?}: {difference}");
            assert!(config.out.join("model.safetensors.index.json").is_file());
            // The training programs take it for a student.
            let files = StudentFiles::open(&config.out).unwrap();
            let place = Place::choose("cpu", ComputeDtype::F32).unwrap();
            files.load(Quantize::None, &place, None).unwrap();
        }
    }
}

/// The fixtures' adapter with its update made smaller.
pub(super) fn scaled_adapter(dir: &Path, factor: f64) -> PathBuf {
    let adapter = dir.join(format!("adapter-{factor}"));
    copy(&fixtures().join("peft/patterns"), &adapter);
    let file = adapter.join("adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    for (_, tensor) in tensors
        .iter_mut()
        .filter(|(name, _)| name.contains("lora_B"))
    {
        *tensor = (&*tensor * factor).unwrap();
    }
    candle_core::safetensors::save(&tensors, &file).unwrap();
    adapter
}

#[test]
fn an_export_rounded_the_training_away_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path(), "models/qwen2-untied");
    let (ids, _) = expected(&fixtures().join("peft/patterns"));
    let before = logits(&base, None, &ids);
    for (factor, fitting) in [(0.02, "float16"), (0.0005, "float32")] {
        let adapter = scaled_adapter(dir.path(), factor);
        let lora = AdapterConfig::read(&adapter).unwrap().lora();
        let side_by_side = logits(&base, Some((lora, &adapter)), &ids);
        let learnt = max_difference(&before, &side_by_side);
        let export = |dtype: ComputeDtype| {
            let config = ExportConfig {
                base: base.clone(),
                adapter: Some(adapter.clone()),
                out: dir.path().join(format!("{factor}-{dtype:?}")),
                dtype,
                ..ExportConfig::default()
            };
            let mut summary = None;
            let log = logged(|| summary = Some(run(&config, &Shutdown::default()).unwrap()));
            let lost = max_difference(&logits(&config.out, None, &ids), &side_by_side);
            (summary.unwrap(), lost / learnt, log)
        };
        let (summary, lost, log) = export(ComputeDtype::Bf16);
        let surviving = summary.surviving.clone().unwrap();
        assert!(
            surviving.all < SURVIVING_MIN && lost > 0.3,
            "{surviving:?} {lost}"
        );
        assert!(log.contains("most of the training is lost"), "{log}");
        assert!(
            summary
                .to_string()
                .contains("of the change survives in bfloat16")
        );
        assert_eq!(surviving.matrices.len(), summary.merged);

        let (summary, lost, log) = export(ComputeDtype::Auto);
        assert_eq!(summary.dtype, fitting);
        let surviving = summary.surviving.unwrap();
        assert!(
            surviving.all >= SURVIVING_MIN && lost < 0.15,
            "{surviving:?} {lost}"
        );
        assert!(!log.contains("lost"), "{log}");
        // What transformers loads it as.
        let written = dir.path().join(format!("{factor}-Auto"));
        assert_eq!(config_json(&written)["torch_dtype"], fitting);
    }
}

#[test]
fn a_base_alone_keeps_its_own_type() {
    let dir = tempfile::tempdir().unwrap();
    for (name, dtype) in [
        ("models/qwen2-untied", "float32"),
        ("models/qwen2-tied", "bfloat16"),
        ("models/llama-gqa", "float16"),
        ("bnb/nf4-double", "bfloat16"),
    ] {
        let config = ExportConfig {
            base: base(&dir.path().join(name), name),
            out: dir.path().join(name).join("out"),
            ..ExportConfig::default()
        };
        let summary = run(&config, &Shutdown::default()).unwrap();
        assert_eq!((summary.dtype, summary.surviving), (dtype, None), "{name}");
    }
}

#[test]
fn four_bit_bases_are_dequantised_and_say_so() {
    for kind in [FourBitKind::Nf4, FourBitKind::Fp4] {
        let dir = tempfile::tempdir().unwrap();
        let quantized = QuantizeConfig {
            from: base(dir.path(), "models/qwen2-untied"),
            out: dir.path().join("4bit"),
            quant_type: kind,
            ..QuantizeConfig::default()
        };
        quantize::run(&quantized, &Shutdown::default()).unwrap();
        let adapter = fixtures().join("peft/patterns");
        let config = ExportConfig {
            base: quantized.out.clone(),
            adapter: Some(adapter.clone()),
            out: dir.path().join("out"),
            dtype: ComputeDtype::F32,
            ..ExportConfig::default()
        };
        run(&config, &Shutdown::default()).unwrap();
        let (ids, full) = expected(&adapter);
        let lora = AdapterConfig::read(&adapter).unwrap().lora();
        let side_by_side = logits(&quantized.out, Some((lora, &adapter)), &ids);
        let exported = logits(&config.out, None, &ids);
        // Sums in another order; without the adapter they move by 6.
        let difference = max_difference(&exported, &side_by_side);
        assert!(difference < 1e-4, "{kind:?}: {difference}");
        assert!(max_difference(&exported, &full) > 0.01);
        let json = config_json(&config.out);
        assert!(json.get("quantization_config").is_none());
        assert_eq!(json["torch_dtype"], "float32");
        for file in [
            "model.safetensors",
            "tokenizer.json",
            "generation_config.json",
        ] {
            assert!(config.out.join(file).is_file(), "{file}");
        }
    }
}

#[test]
fn what_does_not_belong_together_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path(), "models/llama-gqa");
    let config = ExportConfig {
        base: base.clone(),
        // For another model.
        adapter: Some(fixtures().join("peft/patterns")),
        out: dir.path().join("out"),
        ..ExportConfig::default()
    };
    let message = run(&config, &Shutdown::default()).unwrap_err().to_string();
    assert!(
        message.contains("q_proj.lora_B.weight has shape"),
        "{message}"
    );
    let stop = Shutdown::default();
    stop.request();
    let plain = ExportConfig {
        adapter: None,
        ..config.clone()
    };
    assert!(run(&plain, &stop).is_err());
    for (wrong, key) in [
        (
            ExportConfig {
                base: PathBuf::new(),
                ..config.clone()
            },
            "base",
        ),
        (
            ExportConfig {
                max_shard_bytes: 0,
                ..config.clone()
            },
            "max_shard_bytes",
        ),
        (
            ExportConfig {
                base: fixtures().join("bnb/int8"),
                adapter: None,
                ..config.clone()
            },
            "int8",
        ),
    ] {
        let message = run(&wrong, &Shutdown::default()).unwrap_err().to_string();
        assert!(message.contains(key), "{message}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // The base alone is a model too.
    assert_eq!(run(&plain, &Shutdown::default()).unwrap().merged, 0);
    let message = run(&plain, &Shutdown::default()).unwrap_err().to_string();
    assert!(message.contains("not empty"), "{message}");
}
