//! Serves teachers from GGUF files through both real programs.

use std::{collections::HashMap, path::Path};

use anyhow::Result;
use candle_core::Tensor;
use distill_model::Gguf;
use distill_tests::fixtures;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Listen, teacher_refuses, teacher_succeeds, text};
use crate::pipeline::{Setup, assert_like_reference, number, path_text, with_transport};

/// A model directory with the values that the file stands for.
fn dequantised(path: &Path) -> Result<TempDir> {
    let gguf = Gguf::open(path)?;
    let directory = tempfile::tempdir()?;
    let tensors: HashMap<String, Tensor> = gguf
        .names()
        .map(|name| Ok((name.to_owned(), gguf.tensor(name)?)))
        .collect::<Result<_>>()?;
    candle_core::safetensors::save(&tensors, directory.path().join("model.safetensors"))?;
    let config = gguf.config_json().to_string();
    std::fs::write(directory.path().join("config.json"), config)?;
    for (name, text) in gguf.tokenizer_files()? {
        std::fs::write(directory.path().join(name), text)?;
    }
    Ok(directory)
}

#[test]
fn a_gguf_teacher_teaches_what_its_dequantised_weights_say() -> Result<()> {
    for kind in ["qwen2", "llama"] {
        let file = fixtures::path("gguf").join(kind).join("quantised.gguf");
        let setup = Setup {
            teacher: dequantised(&file)?,
            ..Setup::new()?
        };
        let head = ["--top-k", "24", "--estimator", "top-k"];
        let flags = [&head[..], &["--value-coding", "f16"]].concat();
        let teacher = setup.serve_model(&file, &Listen::Loopback, &flags);
        let gradients = setup.work.path().join("gradients.safetensors");
        let out = path_text(&gradients);
        let transport = ["--ot-weight", "0.5"];
        let flags = ["--steps", "1", "--first-step-grad-out", out];
        let run = setup.train(&teacher, kind, &[&flags[..], &transport].concat());
        let expected = setup.reference(24, &with_transport())?;
        assert_like_reference(&run, &gradients, &expected)?;
    }
    Ok(())
}

#[test]
fn a_capture_from_a_gguf_file_is_checked_against_that_file_only() -> Result<()> {
    let file = |name: &str| fixtures::path("gguf/qwen2").join(name);
    let (file, other) = (file("quantised.gguf"), file("model.gguf"));
    let work = tempfile::tempdir()?;
    let cache = work.path().join("cache");
    let corpus = fixtures::path("corpus/documents.txt");
    let precompute = |model: &Path, more: &[&'static str]| {
        let model = ["precompute", "--model", path_text(model)];
        let rest = ["--corpus", path_text(&corpus), "--cache", path_text(&cache)];
        let all = [&model[..], &rest, &["--seq-len", "48"], more].concat();
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |args: Vec<String>| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        teacher_succeeds(&args)
    };
    let said = text(&run(precompute(&file, &[])));
    // Types by the bytes they take; 45,952 bytes of file with its header.
    assert!(
        said.contains("parameters in Q8_0, Q5_0, Q4_0, Q5_1, Q4_1"),
        "{said}"
    );
    assert!(said.contains(" kB of weights"), "{said}");

    let (model, cache_text) = (path_text(&file), path_text(&cache));
    let output = teacher_succeeds(&["inspect", cache_text, "--model", model, "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let fidelity = &report["fidelity"];
    // Stored logits are rounded, so that two of nearly one height may change places.
    assert!(number(fidelity, "top1_agreement")? > 0.95, "{report}");

    let args = precompute(&other, &[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let refusal = teacher_refuses(&args);
    assert!(refusal.contains("captured otherwise"), "{refusal}");
    Ok(())
}

#[test]
fn a_tokenizer_of_its_own_takes_the_place_of_the_files() -> Result<()> {
    let setup = Setup::new()?;
    let file = fixtures::path("gguf/llama/quantised.gguf");
    let tokenizer = fixtures::path("tokenizer");
    let work = tempfile::tempdir()?;
    let said = |more: &[&str]| {
        let cache = work.path().join(format!("cache-{}", more.len()));
        let base = [
            "precompute",
            "--json",
            "--model",
            path_text(&file),
            "--corpus",
        ];
        let rest = [path_text(&setup.corpus), "--cache", path_text(&cache)];
        let output = teacher_succeeds(&[&base[..], &rest, more].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let mut models = lines.filter(|line: &Value| line["tokenizer_fingerprint"].is_string());
        models
            .next()
            .map(|line| line["tokenizer_fingerprint"].clone())
    };
    let own = said(&["--seq-len", "48"]);
    let given = said(&["--seq-len", "48", "--tokenizer", path_text(&tokenizer)]);
    // The file splits text as `smollm` does, the fixture's tokenizer as Qwen2 does.
    assert!(
        own.is_some() && given.is_some() && own != given,
        "{own:?} {given:?}"
    );
    let nowhere = [
        "serve",
        "--bind",
        "127.0.0.1:0",
        "--model",
        path_text(&file),
        "--tokenizer",
        "/nowhere",
    ];
    let refusal =
        teacher_refuses(&[&nowhere[..], &["--corpus", path_text(&setup.corpus)]].concat());
    assert!(refusal.contains("/nowhere"), "{refusal}");
    Ok(())
}
