/*! The export of a student: base and adapter merged, as Hugging Face's programs or llama.cpp load it, or the adapter for llama.cpp.

```text
 base: DIR | X.gguf ──> W in f32 (dequantised) ──┐
 adapter: A, B, scale ──> scale B A = dW ────────┼─> + ──> hf: bf16 | f16 | f32 ──> shards, config.json, tokenizer
                 │                               │     └─> gguf: F16 | Q8_0 | Q4_K_M ──> model.gguf, Modelfile
                 │                               └─> change: the type in which dW survives the rounding
                 └──> gguf-lora ──> adapter.gguf, Modelfile
```

The tensors are read twice where dW is small beside what rounding moves: to see what it leaves of the change, and to write them.
*/

mod adapters;
mod change;
mod gguf;
#[cfg(test)]
mod gguf_tests;
mod modelfile;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use distill_hub::Wanted;
use distill_model::{GgufQuant, ModelConfig};
use distill_program::settings;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Error, Result,
    config::{
        ComputeDtype,
        needs::{GGUF, HF, MERGED},
    },
    files::write_json,
    model_files::{FloatType, Source, Staging, refuse_stopped, write_tensors},
    run::progress,
    shutdown::Shutdown,
    student::located,
};
use adapters::Adapters;
pub use change::Surviving;
use change::{Change, SURVIVING_MIN};

/// What is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// A merged model for Hugging Face's programs.
    #[default]
    Hf,
    /// A merged model in one file, for llama.cpp and what is built on it.
    Gguf,
    /// The adapter alone, for a base that llama.cpp has loaded.
    GgufLora,
}

settings! {
    /// Everything `export` can be told.
    pub struct ExportConfig: once {
        group "Model":
        /// The adapter's base: a directory, a .gguf file, or a name on the hub.
        base: PathBuf = PathBuf::new(), value: "DIR|GGUF|NAME", essential: true;
        /// Directory of the LoRA adapter; unset: the base alone, dequantised.
        adapter: Option<PathBuf> = None, value: "DIR", essential: true;
        group "Output":
        /// Directory to create.
        out: PathBuf = PathBuf::new(), value: "DIR", essential: true;
        /// What to write.
        ///
        /// hf is a merged model for Hugging Face's programs, gguf one in a file for llama.cpp and Ollama, gguf-lora the adapter alone for
        /// these.
        format: ExportFormat as Text = ExportFormat::Hf, essential: true;
        /// What the matrices of a GGUF file are stored as.
        quant: GgufQuant as Text = GgufQuant::F16, needs: [GGUF], essential: true;
        /// Type of the weights written.
        ///
        /// auto is f16 where the adapter's change survives in it, else f32 (without an adapter the base's own type).
        dtype: ComputeDtype as Text = ComputeDtype::Auto, needs: [HF], essential: true;
        /// Most bytes of tensors in one file; a larger tensor gets a file of its own.
        max_shard_bytes: u64 = 5_000_000_000, limits: 1.., needs: [HF];
        group "Model":
        /// Directory with the tokenizer, where the base's own is not to be used or cannot be rebuilt.
        tokenizer: Option<PathBuf> = None, needs: [MERGED];
        group "Output":
        /// Print a JSON object.
        json: bool = false;
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// All tensors.
    pub tensors: usize,
    /// Those that the adapter changed.
    pub merged: usize,
    /// Bytes of the tensors written.
    pub bytes: u64,
    /// Their type, as PyTorch calls it, or llama.cpp.
    pub dtype: &'static str,
    /// What rounding to it left of the adapter's change; none where nothing changed, or in blocks, whose steps are far larger.
    pub surviving: Option<Surviving>,
    /// Where.
    pub out: PathBuf,
}

/// What an export reads and where it writes.
struct Job<'a> {
    config: &'a ExportConfig,
    /// The base, where it was found.
    base: &'a Path,
    source: &'a Source,
    adapters: &'a Adapters,
    staging: &'a Staging,
    shutdown: &'a Shutdown,
}

/// Exports as `config` says. The directory appears whole or not at all.
///
/// # Errors
/// A base or an adapter that cannot be read or that do not belong together, or a file system that refuses.
pub fn run(config: &ExportConfig, shutdown: &Shutdown) -> Result<Summary> {
    settings::check_limits(config)?;
    let is_adapter = config.format == ExportFormat::GgufLora;
    for (missing, message) in [
        (
            config.base.as_os_str().is_empty(),
            "base: name the adapter's base with --base",
        ),
        (
            config.out.as_os_str().is_empty(),
            "out: name the directory to create with --out",
        ),
        (
            is_adapter && config.adapter.is_none(),
            "adapter: name the adapter to write with --adapter",
        ),
    ] {
        if missing {
            return Err(Error::Config(message.into()));
        }
    }
    let staging = Staging::new(&config.out)?;
    let base = located(&config.base, Wanted::Model, shutdown)?;
    let source = Source::open(&base)?;
    let adapters = match &config.adapter {
        Some(directory) => Adapters::read(directory, source.config())?,
        None => Adapters::default(),
    };
    let job = Job {
        config,
        base: &base,
        source: &source,
        adapters: &adapters,
        staging: &staging,
        shutdown,
    };
    let summary = match config.format {
        ExportFormat::Hf => write_directory(&job)?,
        ExportFormat::Gguf => gguf::write_model(&job)?,
        ExportFormat::GgufLora => gguf::write_adapter(&job)?,
    };
    staging.publish()?;
    Ok(summary)
}

/// Writes the merged model as Hugging Face's programs load it.
fn write_directory(job: &Job<'_>) -> Result<Summary> {
    let (config, source, adapters) = (job.config, job.source, job.adapters);
    let directory = job.staging.path();
    // Before the long work: it may not belong to the model.
    source.write_tokenizer(config.tokenizer.as_deref(), directory)?;
    let parameters = source.config().parameter_shapes();
    let change = measure(source, &parameters, adapters, job.shutdown)?;
    let dtype = match config.dtype {
        ComputeDtype::Bf16 => FloatType::Bf16,
        ComputeDtype::F16 => FloatType::F16,
        ComputeDtype::F32 => FloatType::F32,
        ComputeDtype::Auto => match change.fitting() {
            Some(fitting) => fitting,
            None => source.float_type()?,
        },
    };
    let surviving = change.surviving(dtype);
    let remedy = "--dtype auto takes a type in which it survives";
    warn_of_loss(dtype, surviving.as_ref(), remedy);
    let bytes = write_tensors(
        directory,
        config.max_shard_bytes,
        &parameters,
        |(name, _)| name,
        job.shutdown,
        |(name, _)| Ok(vec![dtype.store(name, &adapters.merged(source, name)?)?]),
    )?;
    let mut json = source.config_json()?;
    if let Value::Object(fields) = &mut json {
        dtype.set_in(fields);
    }
    write_json(&directory.join("config.json"), &json)?;
    // What was written must be what is read.
    ModelConfig::load(directory)?;
    Ok(Summary {
        tensors: parameters.len(),
        merged: adapters.len(),
        bytes,
        dtype: dtype.name(),
        surviving,
        out: config.out.clone(),
    })
}

/// Looks at every tensor and at what is added to it; nothing is read where nothing is added.
fn measure(
    source: &Source,
    parameters: &[(String, Vec<usize>)],
    adapters: &Adapters,
    shutdown: &Shutdown,
) -> Result<Change> {
    let mut change = Change::new();
    if adapters.len() == 0 {
        return Ok(change);
    }
    let mut progress = progress(parameters.len(), "tensor looked at");
    for (name, _) in parameters {
        refuse_stopped(shutdown)?;
        change.add(name, &source.tensor(name)?, adapters.update(name)?.as_ref())?;
        progress.advance(|| name.clone());
    }
    progress.finish();
    Ok(change)
}

/// What was learnt must not get lost without a word.
fn warn_of_loss(dtype: FloatType, surviving: Option<&Surviving>, remedy: &str) {
    let Some(surviving) = surviving.filter(|surviving| surviving.all < SURVIVING_MIN) else {
        return;
    };
    tracing::warn!(
        "only {:.1} % of what the adapter changed survives the rounding to {}: most of the training is lost; {remedy}",
        100.0 * surviving.all,
        dtype.name()
    );
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(surviving) = &self.surviving {
            let percent = |share: f64| format!("{:.1} %", 100.0 * share);
            let by_type = surviving.by_type.iter();
            let by_type: Vec<String> = by_type
                .map(|(dtype, share)| format!("{dtype} {}", percent(*share)))
                .collect();
            writeln!(
                f,
                "{} of the change survives in {} ({})",
                percent(surviving.all),
                self.dtype,
                by_type.join(", ")
            )?;
            if let Some((name, share)) = surviving.least() {
                writeln!(f, "least of it in {name}: {}", percent(share))?;
            }
        }
        write!(
            f,
            "{} of {} tensors changed by the adapter, {:.1} MB written; result in {}",
            self.merged,
            self.tensors,
            self.bytes as f64 / 1e6,
            self.out.display()
        )
    }
}
