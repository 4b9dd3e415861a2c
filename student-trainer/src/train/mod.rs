/*! The training run: agree with the teacher, then step by step frames -> loss -> gradients -> update.

```text
 FrameSource ──> Objective::forward_backward ──> GradientWatch ──> AdamW ──> metrics, progress
   (passes)        decoder, head_loss              NaN? severed?     clip, schedule        └──> adapter
```
*/

mod guard;
mod source;
mod step;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use candle_core::{Tensor, Var};
use distill_model::{Checkpointing, Decoder, Gradients, LoraConfig};

use crate::{
    Error, Result,
    client::{self, ConnectOptions, Received, ServerInfo, StreamOptions, Teacher, fetch_basis},
    config::TrainConfig,
    loss::{HeadGeometry, LossError},
    optimizer::{AdamW, AdamWConfig, Schedule, clip_factor},
    run::{
        AdapterConfig, Memory, MetricsLog, Progress, RunDirectory, StepMetrics, save_adapter,
        write_atomically,
    },
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};
use guard::GradientWatch;
use source::FrameSource;
pub use step::{Objective, SolverSummary, StepLoss};

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Optimiser steps done.
    pub steps: usize,
    /// Loss of the last one.
    pub loss: StepLoss,
    /// Where the adapter is.
    pub adapter: PathBuf,
    /// Whether someone asked to stop before all steps were done.
    pub interrupted: bool,
}

/// Trains as `config` says. Blocks the thread; makes its own runtime for the network, so call it outside of one.
///
/// # Errors
/// Whatever stops the run; what was saved before stays.
pub fn run(config: &TrainConfig, shutdown: &Shutdown) -> Result<Summary> {
    config.validate()?;
    let run_directory = RunDirectory::create(&config.out)?;
    let place = Place::choose(&config.device, config.dtype)?;
    let files = StudentFiles::open(&config.student)?;
    let runtime = client::runtime()?;
    let (teacher, info) = runtime.block_on(agree(config, &files, shutdown))?;
    run_directory.write_config(config)?;

    let lora = lora_config(config);
    let decoder = files.load(config.quantize, &place, Some(lora.clone()))?;
    let basis = runtime.block_on(basis(config, &teacher, &info))?;
    let geometry = head_geometry(&decoder, info.vocab_size, basis)?;
    let stream_options = StreamOptions {
        prefetch_frames: config.prefetch_frames,
        reconnect_attempts: config.reconnect_attempts,
        embedding_rows: files.config.vocab_size,
    };
    let handle = runtime.handle().clone();
    let frames = FrameSource::new(
        handle,
        teacher,
        info.clone(),
        stream_options,
        shutdown.clone(),
    );
    let trainer = Trainer {
        config,
        run_directory: &run_directory,
        parameters: decoder.parameters(),
        objective: Objective {
            decoder: &decoder,
            geometry: &geometry,
            loss: &config.loss,
            checkpointing: checkpointing(config),
        },
        total_steps: total_steps(config, info.sequence_count)?,
    };
    let (steps, loss) = trainer.train(frames, shutdown)?;

    let adapter = run_directory.join("adapter");
    let base = files
        .dir
        .canonicalize()
        .unwrap_or_else(|_| files.dir.clone());
    let adapter_config = AdapterConfig::new(&lora, &base.to_string_lossy());
    save_adapter(&adapter, &adapter_config, &trainer.parameters)?;
    files.tokenizer.copy_to(&adapter)?;
    Ok(Summary {
        steps,
        loss,
        adapter,
        interrupted: steps < trainer.total_steps,
    })
}

/// Connects and checks everything that can be checked before any weight is read.
async fn agree(
    config: &TrainConfig,
    files: &StudentFiles,
    shutdown: &Shutdown,
) -> Result<(Teacher, ServerInfo)> {
    let options = ConnectOptions {
        address: config.teacher.clone(),
        ca_cert: config.ca_cert.clone(),
        token_file: config.token_file.clone(),
        timeout: Duration::from_secs(config.connect_timeout_seconds),
    };
    let teacher = Teacher::connect(&options, shutdown).await?;
    let info = teacher.info().await?;
    info.check_student(files.tokenizer.fingerprint(), files.config.vocab_size)?;
    config
        .loss
        .check_teacher(info.estimator, &info.temperatures, info.state.is_some())?;
    tracing::info!(
        "teacher: {} ({}), {} sequences, {} targets of {} tokens, top {} of {} ids",
        info.model_name,
        info.server_version,
        info.sequence_count,
        info.target_count,
        info.token_count,
        info.top_k,
        info.vocab_size
    );
    Ok((teacher, info))
}

async fn basis(
    config: &TrainConfig,
    teacher: &Teacher,
    info: &ServerInfo,
) -> Result<Option<Tensor>> {
    match config.loss.needs_state() {
        true => fetch_basis(teacher, info).await,
        false => Ok(None),
    }
}

/// The effective rows of the head, with what the loss makes of them once.
fn head_geometry(
    decoder: &Decoder,
    vocab_size: u32,
    basis: Option<Tensor>,
) -> Result<HeadGeometry> {
    let head = decoder.head().narrow(0, 0, vocab_size as usize)?;
    Ok(HeadGeometry::new(&head, basis.as_ref())?)
}

fn lora_config(config: &TrainConfig) -> LoraConfig {
    LoraConfig {
        rank: config.lora_rank,
        alpha: config.lora_alpha,
        targets: config.lora_targets.clone(),
        seed: config.seed,
        ..LoraConfig::default()
    }
}

fn checkpointing(config: &TrainConfig) -> Checkpointing {
    match config.checkpointing {
        true => Checkpointing::Every(1),
        false => Checkpointing::Off,
    }
}

/// `steps`, or as many as `epochs` passes take; a step never reaches across the end of a pass.
fn total_steps(config: &TrainConfig, sequence_count: u64) -> Result<usize> {
    if sequence_count == 0 {
        return Err(Error::Stream(
            "the teacher's corpus has no sequence with a target".into(),
        ));
    }
    let sequences_a_step = (config.batch_size * config.grad_accumulation) as u64;
    let steps_a_pass = sequence_count.div_ceil(sequences_a_step) as usize;
    Ok(config.steps.unwrap_or(config.epochs * steps_a_pass))
}

struct Trainer<'a> {
    config: &'a TrainConfig,
    run_directory: &'a RunDirectory,
    parameters: Vec<(String, Var)>,
    objective: Objective<'a>,
    total_steps: usize,
}

impl Trainer<'_> {
    /// Steps until all are done or someone asks to stop. Gives the steps done and the last loss.
    fn train(&self, mut frames: FrameSource, shutdown: &Shutdown) -> Result<(usize, StepLoss)> {
        let config = self.config;
        let mut optimizer = AdamW::new(self.parameters.clone(), adamw_config(config))?;
        let schedule = self.schedule();
        let mut watch = GradientWatch::new(&self.parameters);
        let mut metrics = MetricsLog::create(&self.run_directory.join("metrics.jsonl"))?;
        let mut progress = Progress::start(self.total_steps as u64, "step");
        let mut loss = StepLoss::default();

        for step in 0..self.total_steps {
            let waiting = Instant::now();
            let Some(batch) = frames.next(config.batch_size * config.grad_accumulation)? else {
                break;
            };
            let wait_seconds = waiting.elapsed().as_secs_f64();
            let start = Instant::now();
            let learning_rate = schedule.learning_rate(step);

            let mut gradients = Gradients::new();
            loss = self.forward_backward(step + 1, &batch, &mut gradients)?;
            self.check_finite(step + 1, &batch, &loss, &gradients)?;
            if step == 0
                && let Some(path) = &config.first_step_grad_out
            {
                write_gradients(path, &gradients)?;
            }
            watch.check(step + 1, &self.parameters, &gradients)?;
            let grad_norm = gradients.global_norm()?;
            let clip = clip_factor(grad_norm, config.max_grad_norm);
            optimizer.update(learning_rate, clip, |name| gradients.get(name))?;

            let seconds = start.elapsed().as_secs_f64();
            let line = StepMetrics {
                step: step + 1,
                epoch: frames.epoch(),
                lr: learning_rate,
                grad_norm,
                seconds,
                wait_seconds,
                ..step_metrics(&loss, seconds)
            };
            metrics.append(&line)?;
            progress.advance(|| {
                format!(
                    "loss {:.4}  {:.1} tokens/s",
                    line.loss, line.tokens_per_second
                )
            });
            if shutdown.is_requested() {
                break;
            }
        }
        progress.finish();
        Ok((optimizer.steps(), loss))
    }

    fn schedule(&self) -> Schedule {
        let config = self.config;
        let by_ratio = (config.warmup_ratio * self.total_steps as f64).ceil() as usize;
        let warmup_steps = config.warmup_steps.unwrap_or(by_ratio);
        Schedule::new(
            config.lr,
            config.lr_floor_ratio,
            warmup_steps,
            self.total_steps,
        )
    }

    fn forward_backward(
        &self,
        step: usize,
        batch: &[Received],
        gradients: &mut Gradients,
    ) -> Result<StepLoss> {
        let frames: Vec<_> = batch.iter().map(|received| &received.frame).collect();
        let result = self
            .objective
            .forward_backward(&frames, self.config.batch_size, gradients);
        match result {
            Err(Error::Loss(LossError::NonFinite { what, .. })) => {
                Err(self.refuse(step, what.to_owned(), &[], batch)?)
            }
            other => other,
        }
    }

    /// Stops before the update when anything is NaN or infinite.
    fn check_finite(
        &self,
        step: usize,
        batch: &[Received],
        loss: &StepLoss,
        gradients: &Gradients,
    ) -> Result<()> {
        if let Some(part) = loss.not_finite() {
            return Err(self.refuse(step, part.to_owned(), &[], batch)?);
        }
        let names = guard::not_finite(gradients)?;
        match names.first() {
            None => Ok(()),
            Some(first) => {
                let what = format!("the gradient of {} parameters, first {first},", names.len());
                Err(self.refuse(step, what, &names, batch)?)
            }
        }
    }

    fn refuse(
        &self,
        step: usize,
        what: String,
        names: &[&str],
        batch: &[Received],
    ) -> Result<Error> {
        let dump = self
            .run_directory
            .dump_failed_step(step, &what, names, batch)?;
        Ok(Error::NotFinite { step, what, dump })
    }
}

fn adamw_config(config: &TrainConfig) -> AdamWConfig {
    AdamWConfig {
        beta1: config.beta1,
        beta2: config.beta2,
        eps: config.eps,
        weight_decay: config.weight_decay,
    }
}

fn step_metrics(loss: &StepLoss, seconds: f64) -> StepMetrics {
    let memory = Memory::now();
    StepMetrics {
        loss: loss.total,
        ce: loss.ce,
        kl: loss.kl,
        ot: loss.ot,
        tokens: loss.tokens,
        targets: loss.targets,
        tokens_per_second: loss.tokens as f64 / seconds.max(1e-9),
        ot_iterations: loss.solver.map(|solver| solver.iterations),
        ot_marginal_error: loss.solver.map(|solver| solver.marginal_error),
        ot_converged: loss.solver.map(|solver| solver.converged),
        rss_bytes: memory.rss_bytes,
        peak_rss_bytes: memory.peak_rss_bytes,
        ..StepMetrics::default()
    }
}

fn write_gradients(path: &std::path::Path, gradients: &Gradients) -> Result<()> {
    let tensors: BTreeMap<&str, &Tensor> = gradients.iter().collect();
    write_atomically(path, &safetensors::serialize(tensors, None)?)
}
