//! Provides what is said about a choice of adapters of which a part chooses nothing: of one's own an error, of a file a warning.

use std::path::Path;

use distill_model::{LoraConfig, ModelConfig};

use super::CONFIG_FILE;
use crate::{Error, Result};

/// Refuses settings of `train` that would do nothing without a word.
///
/// # Errors
/// The first of them, by its name, with what it should have matched.
pub fn refuse_unused(lora: &LoraConfig, model: &ModelConfig) -> Result<()> {
    let Some(unused) = lora.unused(model)?.into_iter().next() else {
        return Ok(());
    };
    let setting = unused.key.replace("target_modules", "targets");
    Err(Error::Config(format!(
        "lora_{setting}: {unused}; names are such as model.layers.0.self_attn.q_proj"
    )))
}

/// Warns of what chooses nothing in the adapter of `directory`, as PEFT warns when it loads one.
///
/// # Errors
/// An expression whose matching does not end in time.
pub fn warn_of_unused(directory: &Path, lora: &LoraConfig, model: &ModelConfig) -> Result<()> {
    for unused in lora.unused(model)? {
        tracing::warn!(
            "{}: {}: {unused}; it is ignored",
            directory.join(CONFIG_FILE).display(),
            unused.key
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use distill_model::{
        LoraPattern,
        testing::{TinyModel, write_tiny_model},
    };
    use serde_json::json;

    use super::*;
    use crate::{
        config::{Quantize, TrainConfig},
        eval::{self, EvalConfig},
        export::{self, ExportConfig},
        run::{AdapterConfig, save_adapter},
        shutdown::Shutdown,
        student::{Place, StudentFiles},
        test_models::{logged, write_student},
    };

    #[test]
    fn an_adapter_with_patterns_for_nothing_was_loaded_without_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let (student, adapter) = (dir.path().join("student"), dir.path().join("adapter"));
        write_student(&student, TinyModel::llama(), 40);
        let ending = |text| LoraPattern::ending("pattern", text).unwrap();
        let lora = LoraConfig {
            rank: 2,
            targets: ["q_proj", "query"].into_iter().collect(),
            exclude: Some(["vision"].into_iter().collect()),
            rank_pattern: vec![(ending("k_proj"), 4)],
            alpha_pattern: vec![(ending("q_proj"), 4.0), (ending("layers.5.*"), 4.0)],
            ..LoraConfig::default()
        };
        let files = StudentFiles::open(&student).unwrap();
        let place = Place::choose("cpu", crate::config::ComputeDtype::F32).unwrap();
        let decoder = files
            .load(Quantize::None, &place, Some(lora.clone()))
            .unwrap();
        let config = AdapterConfig::new(&lora, "student");
        save_adapter(&adapter, &config, &decoder.parameters()).unwrap();

        let corpus = dir.path().join("corpus.jsonl");
        fs::write(&corpus, json!({"text": "w1 w2 w3"}).to_string()).unwrap();
        let evaluation = EvalConfig {
            student: student.clone(),
            adapter: Some(adapter.clone()),
            data: vec![corpus],
            device: "cpu".into(),
            ..EvalConfig::default()
        };
        let export = ExportConfig {
            base: student.clone(),
            adapter: Some(adapter.clone()),
            out: dir.path().join("out"),
            ..ExportConfig::default()
        };
        let stop = Shutdown::default();
        for log in [
            logged(|| drop(eval::run(&evaluation, &stop).unwrap())),
            logged(|| drop(export::run(&export, &stop).unwrap())),
            logged(|| warn_of_unused(&adapter, &lora, decoder.config()).unwrap()),
        ] {
            for part in [
                "target_modules: `query`",
                "exclude_modules: `vision`",
                "rank_pattern: `k_proj`",
                "alpha_pattern: `layers.5.*`",
            ] {
                assert!(
                    log.contains(&format!("adapter_config.json: {part} matches no")),
                    "{log}"
                );
            }
            assert_eq!(log.matches("it is ignored").count(), 4, "{log}");
        }
    }

    #[test]
    fn settings_that_choose_nothing_are_refused_under_their_own_names() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_model(dir.path(), &TinyModel::llama(), 1).unwrap();
        let model = ModelConfig::load(dir.path()).unwrap();
        let config = TrainConfig::default;
        for (config, part) in [
            (
                TrainConfig {
                    lora_targets: vec!["q_proj".into(), "query".into()],
                    ..config()
                },
                "lora_targets: `query`",
            ),
            (
                TrainConfig {
                    lora_rank_pattern: vec!["layers.9.*=2".into()],
                    ..config()
                },
                "lora_rank_pattern: `layers.9.*`",
            ),
            (
                TrainConfig {
                    lora_alpha_pattern: vec!["query=2".into()],
                    ..config()
                },
                "lora_alpha_pattern: `query`",
            ),
        ] {
            let error = refuse_unused(&config.lora().unwrap(), &model).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        refuse_unused(&config().lora().unwrap(), &model).unwrap();
    }
}
