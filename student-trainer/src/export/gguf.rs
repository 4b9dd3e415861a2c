//! Provides an export as GGUF: the merged model in one file, or the adapter alone.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use candle_core::Device;
use distill_model::{
    DeviceMemory, Gguf, GgufFile, GgufQuant, GgufTokenizer, ModelConfig, Room, answers::end_ids,
    free_and_total,
};
use distill_text::TokenizerFiles;
use serde_json::Value;

use super::{
    Change, Job, Summary, measure,
    modelfile::{self, Modelfile},
    warn_of_loss,
};
use crate::{
    Error, Result,
    files::{write_atomically, write_json},
    model_files::{FloatType, refuse_stopped},
    run::progress,
};

/// The file of a merged model.
const MODEL_FILE: &str = "model.gguf";
/// That of an adapter.
const ADAPTER_FILE: &str = "adapter.gguf";
/// Of the largest tensor, f32 copies that are in memory at once: itself, its update, their sum, and what is rounded.
const COPIES: u64 = 4;

/// Writes the merged model.
pub(super) fn write_model(job: &Job<'_>) -> Result<Summary> {
    let (source, adapters, quant) = (job.source, job.adapters, job.config.quant);
    let model = source.config();
    let (tokenizer, stops) = tokenizer(job)?;
    let mut file = GgufFile::model(model, &name(job), &tokenizer, quant)?;
    refuse_without_room(model, quant, free_and_total(&Device::Cpu)?)?;
    warn_of_window(model);
    let parameters = model.parameter_shapes();
    // In blocks everything moves by more than a training does, and models stand it.
    let change = match quant {
        GgufQuant::F16 => measure(source, &parameters, adapters, job.shutdown)?,
        _ => Change::new(),
    };
    let surviving = change.surviving(FloatType::F16);
    let remedy = "--format gguf-lora keeps the adapter beside the base, unrounded";
    warn_of_loss(FloatType::F16, surviving.as_ref(), remedy);
    let mut progress = progress(parameters.len(), "tensor");
    let mut bytes = 0;
    for (name, _) in &parameters {
        refuse_stopped(job.shutdown)?;
        bytes += file.push(name, &adapters.merged(source, name)?)?;
        progress.advance(|| name.clone());
    }
    progress.finish();
    let path = job.staging.path().join(MODEL_FILE);
    write_file(&file, &path)?;
    refuse_stopped(job.shutdown)?;
    // What was written must be what is read.
    let written = Gguf::open(&path)?;
    if written.tokenizer()? != tokenizer {
        return Err(Error::file(
            &path,
            "does not give back the tokenizer that was written",
        ));
    }
    let modelfile = Modelfile {
        from: format!("./{MODEL_FILE}"),
        adapter: None,
        has_template: tokenizer.chat_template.is_some(),
        stops: &stops,
    };
    write_modelfile(job, &modelfile)?;
    Ok(Summary {
        tensors: parameters.len(),
        merged: adapters.len(),
        bytes,
        dtype: quant.name(),
        surviving,
        out: job.config.out.clone(),
    })
}

/// Writes the adapter alone, in f32 as it was trained.
pub(super) fn write_adapter(job: &Job<'_>) -> Result<Summary> {
    let model = job.source.config();
    // llama.cpp multiplies by alpha / rank, one alpha for all matrices and each its own rank. What a matrix has otherwise goes
    // into its B.
    let alphas = || {
        let adapters = job.adapters.iter();
        adapters.map(|(name, lora)| (name, lora, lora.scale * lora.a.dims()[0] as f64))
    };
    let alpha = alphas().next().map_or(1.0, |(_, _, alpha)| alpha) as f32;
    let mut file = GgufFile::adapter(model, &name(job), alpha)?;
    let mut progress = progress(job.adapters.len(), "matrix");
    let mut bytes = 0;
    for (name, lora, own) in alphas() {
        refuse_stopped(job.shutdown)?;
        let b = (lora.b.as_tensor() * (own / f64::from(alpha)))?;
        bytes += file.push_adapter(name, lora.a.as_tensor(), &b)?;
        progress.advance(|| name.to_owned());
    }
    progress.finish();
    write_file(&file, &job.staging.path().join(ADAPTER_FILE))?;
    let base = job
        .base
        .canonicalize()
        .map_err(Error::io("find", job.base))?;
    let modelfile = Modelfile {
        from: base.to_string_lossy().into_owned(),
        adapter: Some(format!("./{ADAPTER_FILE}")),
        has_template: true,
        stops: &[],
    };
    write_modelfile(job, &modelfile)?;
    Ok(Summary {
        tensors: model.parameter_shapes().len(),
        merged: job.adapters.len(),
        bytes,
        dtype: "F32",
        surviving: None,
        out: job.config.out.clone(),
    })
}

/// The tokenizer as the file says it, and what ends an answer.
fn tokenizer(job: &Job<'_>) -> Result<(GgufTokenizer, Vec<String>)> {
    let directory =
        tempfile::tempdir().map_err(Error::io("create a directory in", &std::env::temp_dir()))?;
    let directory = directory.path();
    job.source
        .write_tokenizer(job.config.tokenizer.as_deref(), directory)?;
    let config = job.source.config_json()?;
    // It names the end of text where nothing else does.
    write_json(&directory.join("config.json"), &config)?;
    let files = TokenizerFiles::open(directory)?;
    let rows = job.source.config().vocab_size;
    let id = |name: &str| {
        let named = files.special_id(&format!("{name}_token"));
        named.or_else(|| configured(&config, name, rows))
    };
    let before = files.prefix_ids();
    let bos_id = match before {
        [] => id("bos"),
        [one] => Some(*one),
        several => {
            return Err(Error::Config(format!(
                "tokenizer: puts {} tokens before every text, and a GGUF file says of one only; name another tokenizer with --tokenizer",
                several.len()
            )));
        }
    };
    let tokenizer = GgufTokenizer {
        bos_id,
        eos_id: files.eos_id(),
        pad_id: id("pad"),
        unk_id: id("unk"),
        add_bos: !before.is_empty(),
        chat_template: files.chat_template_source().map(str::to_owned),
        ..GgufTokenizer::of_json(&files.to_json()?, rows)?
    };
    let ends = end_ids(directory, &files)?.into_iter();
    let ends = ends.filter(|id| files.is_special(*id));
    let stops = ends.filter_map(|id| files.tokenizer().id_to_token(id));
    Ok((tokenizer, stops.collect()))
}

/// The id that `config.json` has for a special token, where it is one of the embedding's rows.
fn configured(config: &Value, name: &str, rows: usize) -> Option<u32> {
    let id = config.get(format!("{name}_token_id"))?.as_u64()?;
    let id = u32::try_from(id).ok()?;
    ((id as usize) < rows).then_some(id)
}

/// What people see as the model's name: the base's, as it was given.
fn name(job: &Job<'_>) -> String {
    let given = &job.config.base;
    let name = if given.is_dir() {
        given.file_name()
    } else {
        given.file_stem()
    };
    name.map_or_else(
        || "model".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// All blocks are in memory until the file is written, beside the tensor that is being made.
fn refuse_without_room(
    model: &ModelConfig,
    quant: GgufQuant,
    memory: Option<DeviceMemory>,
) -> Result<()> {
    let shapes = model.parameter_shapes();
    let elements = shapes
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>());
    let largest = elements.max().unwrap_or_default() as u64 * size_of::<f32>() as u64;
    let need_bytes = GgufFile::bytes_of(model, quant) + COPIES * largest;
    match memory {
        Some(memory) if memory.free_bytes < need_bytes => Err(Error::Model(distill_model::Error::OutOfMemory {
            what: format!("a GGUF file in {}, which is in memory until it is written,", quant.name()),
            need_bytes: Some(need_bytes),
            room: Room::Device {
                name: "cpu".to_owned(),
                memory,
            },
            remedy: "take a smaller --quant (q4_k_m), or write --format hf, which needs one tensor at a time".to_owned(),
        })),
        _ => Ok(()),
    }
}

/// llama.cpp does not look at the window of these models.
fn warn_of_window(model: &ModelConfig) {
    if let Some(window) = model.windows.iter().flatten().max() {
        tracing::warn!(
            "the model attends to the latest {window} positions, and llama.cpp to all of them: beyond {window} tokens it computes \
             something else than here"
        );
    }
}

fn write_file(file: &GgufFile, path: &Path) -> Result<()> {
    let out = File::create_new(path).map_err(Error::io("create", path))?;
    let mut out = BufWriter::new(out);
    file.write(&mut out).map_err(|e| Error::file(path, e))?;
    out.flush().map_err(Error::io("write", path))
}

fn write_modelfile(job: &Job<'_>, modelfile: &Modelfile<'_>) -> Result<()> {
    let path = job.staging.path().join(modelfile::NAME);
    write_atomically(&path, modelfile.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use distill_model::testing::{TinyModel, write_tiny_model};

    use super::*;

    #[test]
    fn a_model_that_does_not_fit_into_memory_is_refused_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_model(dir.path(), &TinyModel::qwen2(), 1).unwrap();
        let model = ModelConfig::load(dir.path()).unwrap();
        let with = |free_bytes: u64| {
            let memory = DeviceMemory {
                free_bytes,
                total_bytes: 1 << 40,
            };
            refuse_without_room(&model, GgufQuant::F16, Some(memory))
        };
        with(1 << 30).unwrap();
        refuse_without_room(&model, GgufQuant::F16, None).unwrap();
        let message = with(1000).unwrap_err().to_string();
        for part in [
            "F16",
            "in memory until it is written",
            "--quant",
            "--format hf",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }
}
