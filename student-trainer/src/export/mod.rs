/*! The merging of an adapter into its base: one model that Hugging Face's programs load without PEFT.

```text
 base: DIR | X.gguf ──> W in f32 (dequantised) ──┐
 adapter: A, B, scale ──> scale B A = dW ────────┼─> + ──> bf16 | f16 | f32 ──> shards, config.json, tokenizer
                                                 └─> change: the type in which dW survives the rounding
```

The tensors are read twice: to see what rounding leaves of the change, and to write them.
*/

mod adapters;
mod change;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf};

use distill_hub::Wanted;
use distill_model::ModelConfig;
use distill_program::settings;
use serde::Serialize;
use serde_json::Value;

use crate::{
    Error, Result,
    config::ComputeDtype,
    files::write_json,
    model_files::{FloatType, Source, Staging, refuse_stopped, write_tensors},
    run::progress,
    shutdown::Shutdown,
    student::located,
};
use adapters::Adapters;
pub use change::Surviving;
use change::{Change, SURVIVING_MIN};

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
        /// Type of the weights written.
        ///
        /// auto is f16 where the adapter's change survives in it, else f32 (without an adapter the base's own type).
        dtype: ComputeDtype as Text = ComputeDtype::Auto, essential: true;
        /// Most bytes of tensors in one file; a larger tensor gets a file of its own.
        max_shard_bytes: u64 = 5_000_000_000, limits: 1..;
        group "Model":
        /// Directory with the tokenizer, where the base's own is not to be used or cannot be rebuilt.
        tokenizer: Option<PathBuf> = None;
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
    /// Their type, as PyTorch calls it.
    pub dtype: &'static str,
    /// What rounding to it left of the adapter's change; none where nothing changed.
    pub surviving: Option<Surviving>,
    /// Where.
    pub out: PathBuf,
}

/// Merges as `config` says. The directory appears whole or not at all.
///
/// # Errors
/// A base or an adapter that cannot be read or that do not belong together, or a file system that refuses.
pub fn run(config: &ExportConfig, shutdown: &Shutdown) -> Result<Summary> {
    settings::check_limits(config)?;
    for (missing, message) in [
        (
            config.base.as_os_str().is_empty(),
            "base: name the adapter's base with --base",
        ),
        (
            config.out.as_os_str().is_empty(),
            "out: name the directory to create with --out",
        ),
    ] {
        if missing {
            return Err(Error::Config(message.into()));
        }
    }
    let staging = Staging::new(&config.out)?;
    let source = Source::open(&located(&config.base, Wanted::Model, shutdown)?)?;
    // Before the long work: it may not belong to the model.
    source.write_tokenizer(config.tokenizer.as_deref(), staging.path())?;
    let parameters = source.config().parameter_shapes();
    let adapters = match &config.adapter {
        Some(directory) => Adapters::read(directory, source.config())?,
        None => Adapters::default(),
    };
    let change = measure(&source, &parameters, &adapters, shutdown)?;
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
    warn_of_loss(dtype, surviving.as_ref());
    let bytes = write_tensors(
        staging.path(),
        config.max_shard_bytes,
        &parameters,
        |(name, _)| name,
        shutdown,
        |(name, _)| {
            let weight = source.tensor(name)?;
            let merged = match adapters.update(name)? {
                Some(update) => (weight + update)?,
                None => weight,
            };
            Ok(vec![dtype.store(name, &merged)?])
        },
    )?;
    let mut json = source.config_json()?;
    if let Value::Object(fields) = &mut json {
        dtype.set_in(fields);
    }
    write_json(&staging.path().join("config.json"), &json)?;
    // What was written must be what is read.
    ModelConfig::load(staging.path())?;
    staging.publish()?;
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
fn warn_of_loss(dtype: FloatType, surviving: Option<&Surviving>) {
    let Some(surviving) = surviving.filter(|surviving| surviving.all < SURVIVING_MIN) else {
        return;
    };
    tracing::warn!(
        "only {:.1} % of what the adapter changed survives the rounding to {}: most of the training is lost; --dtype auto takes \
         a type in which it survives",
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
            "{} of {} tensors changed by the adapter, {:.1} MB written; model in {}",
            self.merged,
            self.tensors,
            self.bytes as f64 / 1e6,
            self.out.display()
        )
    }
}
