/*! The training of a whole small model on text, without a teacher: cross-entropy alone, every weight an f32 variable.

```text
 config.json ──> init (random) or --from DIR ──┐
 .txt .jsonl ──> corpus ──> batches by length ──┴─> decoder ──> head_loss_with_head ──> AdamW ──> model/ (safetensors)
```

It makes the teachers and students of the quickstart, and whatever small base someone needs before distilling into it.
*/

mod batches;
mod config;
mod init;
mod save;
mod step;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use candle_core::DType;
use distill_model::{
    Base, CONFIG_BYTES_MAX, Decoder, Gradients, LoadOptions, ModelConfig, Weights,
};
use distill_text::{TokenizerFiles, Windowing, read_corpus};

use crate::{
    Error, Result,
    config::ComputeDtype,
    files::{self, write_atomically},
    optimizer::{Optimizer, clip_factor},
    report,
    run::{Memory, RunDirectory, RunLog, StepMetrics, progress},
    shutdown::Shutdown,
    student::Place,
};
use batches::Batches;
pub use config::PretrainConfig;
pub use init::write_random_model;
pub(crate) use save::save_model;
use step::Objective;

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Optimiser steps done.
    pub steps: usize,
    /// Cross-entropy of the last one.
    pub ce: f64,
    /// Where the model is.
    pub model: PathBuf,
    /// Whether someone asked to stop before all steps were done.
    pub interrupted: bool,
}

/// Trains as `config` says. What was learnt up to a SIGINT is saved.
///
/// # Errors
/// Whatever stops the run.
pub fn run(config: &PretrainConfig, shutdown: &Shutdown) -> Result<Summary> {
    config.validate()?;
    let place = Place::choose(&config.device, ComputeDtype::F32)?;
    let tokenizer = tokenizer(config)?;
    let run_directory = RunDirectory::create(&config.out)?;
    let corpus = read_corpus(
        &config.data,
        &tokenizer,
        &Windowing::new(config.seq_len)
            .strict(config.strict)
            .of_student(),
        &mut |_| {},
    )?;
    if corpus.skipped.rows > 0 {
        tracing::warn!("{}", corpus.skipped);
    }
    tracing::info!(
        "corpus: {} sequences, {} tokens, {} targets; {} cut at {} tokens",
        corpus.sequences.len(),
        corpus.tokens,
        corpus.targets,
        corpus.skipped.truncated,
        config.seq_len
    );
    let explained = |error| place.explained(error);
    let (decoder, config_json) = start(config, &tokenizer, &place).map_err(explained)?;
    let mut batches = Batches::new(corpus.sequences, config.batch_size, config.seed)?;
    // From here on there is a run: nothing was written before.
    run_directory.begin(config)?;
    let model = run_directory.join("model");
    files::create_directory(&model)?;
    tokenizer.copy_to(&model)?;
    write_atomically(&model.join("config.json"), &config_json)?;
    let total_steps = config
        .steps
        .unwrap_or(config.epochs * batches.steps_a_pass());
    let objective = Objective::new(&decoder, tokenizer.size() as usize, config.chunk_rows);
    let (steps, ce) = train(
        config,
        total_steps,
        &objective,
        &mut batches,
        &run_directory,
        shutdown,
    )
    .map_err(explained)?;
    save_model(&model, &decoder.parameters(), config.save_dtype.for_files())?;
    report::write_or_warn(run_directory.path());
    if steps < total_steps {
        tracing::warn!(
            "stopped after {steps} of {total_steps} steps: the model in {} is not trained to the end",
            model.display()
        );
    }
    Ok(Summary {
        steps,
        ce,
        model,
        interrupted: steps < total_steps,
    })
}

fn tokenizer(config: &PretrainConfig) -> Result<TokenizerFiles> {
    let directory = config.tokenizer.as_ref().or(config.from.as_ref());
    let directory = directory.map_or(Path::new(""), PathBuf::as_path);
    let mut tokenizer = TokenizerFiles::open(directory)?;
    tokenizer.set_chat_template_kwargs(&config.chat_template_kwargs);
    Ok(tokenizer)
}

/// The model to start from, every weight trainable, and the text of its `config.json`.
fn start(
    config: &PretrainConfig,
    tokenizer: &TokenizerFiles,
    place: &Place,
) -> Result<(Decoder, Vec<u8>)> {
    let path = match (&config.model_config, &config.from) {
        (Some(file), _) => file.clone(),
        (None, from) => from.clone().unwrap_or_default().join("config.json"),
    };
    let config_json = files::read(&path, CONFIG_BYTES_MAX)?;
    let shape = ModelConfig::parse(&config_json, &path)?;
    if (shape.vocab_size as u64) < u64::from(tokenizer.size()) {
        return Err(Error::file(
            &path,
            format!(
                "vocab_size is {}, but the tokenizer has {} ids; raise it",
                shape.vocab_size,
                tokenizer.size()
            ),
        ));
    }
    // On the disk that the model will be on: it may be larger than what the system's has room for.
    let random = tempfile::tempdir_in(&config.out)
        .map_err(Error::io("create a directory in", &config.out))?;
    let weights = match &config.from {
        Some(from) => Weights::open(from)?,
        None => {
            write_random_model(random.path(), &shape, config.seed)?;
            Weights::open(random.path())?
        }
    };
    let options = LoadOptions {
        dtype: DType::F32,
        device: place.device.clone(),
        base: Base::Trainable,
        lora: None,
    };
    let decoder = Decoder::load(&shape, &weights, &options)?;
    let count: usize = decoder
        .parameters()
        .iter()
        .map(|(_, var)| var.elem_count())
        .sum();
    tracing::info!(
        "model: {} layers of width {}, {count} parameters",
        shape.num_hidden_layers,
        shape.hidden_size
    );
    Ok((decoder, config_json))
}

fn train(
    config: &PretrainConfig,
    total_steps: usize,
    objective: &Objective<'_>,
    batches: &mut Batches,
    run_directory: &RunDirectory,
    shutdown: &Shutdown,
) -> Result<(usize, f64)> {
    let parameters = objective.decoder.parameters();
    let updates = config.update_settings();
    let mut optimizer = Optimizer::new(parameters.clone(), updates.optimizer)?;
    let schedule = updates.schedule(None, total_steps);
    let mut log = RunLog::create(run_directory)?;
    let mut progress = progress(total_steps, "step");
    let mut ce = f64::NAN;
    for step in 0..total_steps {
        let start = Instant::now();
        let epoch = batches.epoch();
        let batch = batches.next_batch();
        let mut gradients = Gradients::new();
        ce = objective.forward_backward(&batch, &mut gradients)?;
        let squares = gradients.squares()?;
        let grad_norm = squares.norm();
        if !(ce.is_finite() && grad_norm.is_finite()) {
            return Err(Error::Diverged {
                step: step + 1,
                ce,
                grad_norm,
            });
        }
        if step == 0 {
            let check = gradients.check(&parameters, &squares)?;
            if let Some(names) = check.missing.first() {
                return Err(Error::Gradient {
                    step: 1,
                    names: names.clone(),
                    what: "no",
                });
            }
        }
        let clip = clip_factor(grad_norm, updates.max_grad_norm);
        let lr = schedule.learning_rate(step);
        optimizer.update(lr, clip, |name| gradients.get(name))?;
        let seconds = start.elapsed().as_secs_f64();
        let tokens = batch.iter().map(|sequence| sequence.token_ids.len()).sum();
        let memory = Memory::now();
        log.step(&StepMetrics {
            step: step + 1,
            epoch,
            lr,
            loss: ce,
            ce,
            grad_norm,
            tokens,
            targets: batch.iter().map(|sequence| sequence.targets()).sum(),
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
            seconds,
            rss_bytes: memory.rss_bytes,
            peak_rss_bytes: memory.peak_rss_bytes,
            ..StepMetrics::default()
        })?;
        progress.advance(|| {
            format!(
                "CE {ce:.4}  {:.0} tokens/s",
                tokens as f64 / seconds.max(1e-9)
            )
        });
        if config.save_every > 0 && (step + 1) % config.save_every == 0 {
            let model = run_directory.join("model");
            save_model(&model, &parameters, config.save_dtype.for_files())?;
        }
        if shutdown.is_requested() {
            break;
        }
    }
    progress.finish();
    Ok((optimizer.steps(), ce))
}
