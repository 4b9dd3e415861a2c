//! Provides what tests of whole commands need: tiny students on disk, and the log that a command wrote.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex},
};

use candle_core::Tensor;
use distill_model::{
    LoraConfig,
    testing::{TinyModel, write_tiny_model},
};
use serde_json::{Map, Value, json};

use crate::{
    config::{ComputeDtype, Quantize},
    run::{AdapterConfig, save_adapter},
    student::{Place, StudentFiles},
};

/// Writes a random model of `words` tokens with a tokenizer of as many words, w0 to the last; w0 ends a text.
pub(crate) fn write_student(directory: &Path, model: TinyModel, words: usize) {
    let model = TinyModel {
        vocab_size: words,
        ..model
    };
    fs::create_dir_all(directory).unwrap();
    write_tiny_model(directory, &model, 9).unwrap();
    let vocabulary: Map<String, Value> = (0..words).map(|i| (format!("w{i}"), i.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    });
    fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"eos_token": "w0"}).to_string();
    fs::write(directory.join("tokenizer_config.json"), config).unwrap();
}

/// Writes an adapter of the student in `directory` that changes what it says.
pub(crate) fn write_adapter(directory: &Path, adapter: &Path) {
    let files = StudentFiles::open(directory).unwrap();
    let place = Place::choose("cpu", ComputeDtype::F32).unwrap();
    let lora = LoraConfig::default();
    let decoder = files.load(Quantize::None, &place, Some(lora.clone()));
    let parameters = decoder.unwrap().parameters();
    for (_, var) in &parameters {
        let values = (0..var.elem_count()).map(|i| (i as f32 * 0.7).sin() * 0.2);
        let values = Tensor::from_iter(values, var.device()).unwrap();
        var.set(&values.reshape(var.shape()).unwrap()).unwrap();
    }
    let config = AdapterConfig::new(&lora, &files.base);
    save_adapter(adapter, &config, &parameters).unwrap();
}

/// Changes one key of a model's config.json.
pub(crate) fn set_in_config(directory: &Path, key: &str, value: Value) {
    let mut config = config_json(directory);
    config[key] = value;
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
}

/// A model's config.json.
pub(crate) fn config_json(directory: &Path) -> Value {
    serde_json::from_slice(&fs::read(directory.join("config.json")).unwrap()).unwrap()
}

/// What `work` logs on this thread.
pub(crate) fn logged(work: impl FnOnce()) -> String {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let bytes = log.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
