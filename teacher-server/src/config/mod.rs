//! Provides the checked configuration: flags over file over defaults.

mod address;
mod effects;
mod file;
mod foreign;
mod part;
mod preset;
mod state;
mod values;

use std::{collections::HashSet, path::PathBuf, time::Duration};

use candle_core::Device;
use distill_model::{ComputeDtype, DeviceChoice};
use distill_proto::{
    Estimator,
    limits::{KEPT_ENTRIES_MAX, TEMPERATURES_MAX},
};
use distill_text::{
    ChatTemplateKwargs, TokenizerFiles,
    limits::{SEQ_LEN_MAX, SEQ_LEN_MIN},
};
use serde::Serialize;

use crate::{
    Error, Result,
    cache::Cache,
    cli::{ServeArgs, Settings},
    lease::LeaseOptions,
    plan,
    service::Auth,
};
pub use address::BindAddress;
pub use foreign::with_our_name;
pub use part::Part;
pub use state::StateSetting;
pub use values::{EstimatorSetting, ValueCodingSetting, VramMode};

/// Sequences in one forward pass.
pub const BATCH_SIZE_MAX: usize = 4096;
/// Sequences the teacher may be ahead.
pub const QUEUE_MAX: usize = 1 << 16;
/// Sequences in a turn of the teacher.
pub const WINDOW_MAX: usize = 1 << 24;
/// Seconds that a trainer may get to leave the device: a day.
pub const YIELD_TIMEOUT_S_MAX: u64 = 86_400;
/// Rows of logits at a time.
pub const CHUNK_ROWS_MAX: usize = 1 << 16;
/// Threads for the arithmetic.
pub const THREADS_MAX: usize = 1024;
/// Bytes of a shard that is about to be written, which is in memory once.
pub const SHARD_BYTES_MAX: usize = 4 << 30;
const SHARD_BYTES_DEFAULT: u64 = 64 << 20;
/// Largest logits under `top-k`.
const TOP_K_DEFAULT: usize = 64;
/// Draws under `sampled`.
const DRAWS_DEFAULT: usize = 32;
/// Largest logits and draws under `head+sampled`.
const HEAD_DEFAULT: usize = 8;
const HEAD_DRAWS_DEFAULT: usize = 16;
/// Largest seed of draws: TOML has no larger integer.
pub const SAMPLE_SEED_MAX: u64 = i64::MAX as u64;

/// Everything `serve` needs, checked. Serialises to the TOML that `--config` reads.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// Directory, GGUF file or name of the teacher.
    pub model: PathBuf,
    /// Directory or name of its tokenizer; absent: the model's own.
    pub tokenizer: Option<PathBuf>,
    /// Corpus files, in order.
    pub corpus: Vec<PathBuf>,
    /// Whether a line or row that cannot be used ends the reading of the corpus.
    pub strict: bool,
    /// Variables of the chat template for every conversation; absent: none.
    pub chat_template_kwargs: Option<ChatTemplateKwargs>,
    /// Tokens in a window.
    pub seq_len: usize,
    /// Sequences in one forward pass.
    pub batch_size: usize,
    /// How a row stands for the teacher's distribution.
    pub estimator: EstimatorSetting,
    /// Largest logits kept a token, K.
    pub top_k: usize,
    /// Draws a token.
    pub draws: usize,
    /// Seed of the draws.
    pub sample_seed: u64,
    /// Temperatures at which logsumexp is stored.
    pub temperatures: Vec<f32>,
    /// How kept logits are stored.
    pub value_coding: ValueCodingSetting,
    /// Whether, of which layer and how hidden states are sent along.
    pub state: StateSetting,
    /// Arithmetic of the teacher.
    pub dtype: ComputeDtype,
    /// Where the teacher computes.
    pub device: DeviceChoice,
    /// What weights may take on the device; absent: what is free there.
    pub memory_budget_bytes: Option<u64>,
    /// Where to listen.
    pub bind: BindAddress,
    /// File with the bearer token.
    pub token_file: Option<PathBuf>,
    /// PEM certificate chain.
    pub tls_cert: Option<PathBuf>,
    /// PEM private key.
    pub tls_key: Option<PathBuf>,
    /// Sequences the teacher may be ahead of a reader.
    pub queue: usize,
    /// How the device is shared with trainers.
    pub vram_mode: VramMode,
    /// Sequences in a turn of the teacher.
    pub window: usize,
    /// Seconds that a trainer gets to leave the device before others hear of it.
    pub yield_timeout_s: u64,
    /// Rows of logits at a time.
    pub chunk_rows: usize,
    /// Threads for the arithmetic; absent: one a core.
    pub threads: Option<usize>,
    /// Directory of the cache that is served and filled; absent: what is computed lives as long as the server.
    pub cache: Option<PathBuf>,
    /// Bytes of a shard of the cache, about.
    pub shard_bytes: u64,
    /// Which shards this process computes; absent: all.
    #[serde(skip)]
    pub part: Option<Part>,
    /// Whether a cache of another backend or build is gone on with: its bytes will not be those of before.
    #[serde(skip)]
    pub any_backend: bool,
    /// Directory of the spool; absent: the system's temporary directory.
    pub spool_dir: Option<PathBuf>,
    /// File for the port listened on.
    pub port_file: Option<PathBuf>,
    /// Report as JSON lines.
    pub json: bool,
}

impl Config {
    /// Reads the file that `--config` names, lays the flags over it, and checks the result.
    ///
    /// # Errors
    /// `Config` naming the flag, or `ConfigFile` naming the file and the key.
    pub fn validate(args: &ServeArgs) -> Result<Self> {
        let settings = match &args.config {
            Some(path) => file::read(path)?.overlaid_with(&args.settings)?,
            None => args.settings.clone(),
        };
        let settings = match &settings.preset {
            Some(name) => preset::preset(name)?.overlaid_with(&settings)?,
            None => settings,
        };
        Self::from_settings(with_captured(settings)?)
    }

    /// Gives the chat template the variables that the settings name.
    pub fn set_template_kwargs(&self, tokenizer: &mut TokenizerFiles) {
        if let Some(kwargs) = &self.chat_template_kwargs {
            tokenizer.set_chat_template_kwargs(kwargs);
        }
    }

    /// Fills defaults in and checks every setting.
    ///
    /// # Errors
    /// `Config` naming the flag and what to do.
    pub fn from_settings(settings: Settings) -> Result<Self> {
        let bind = settings.bind.as_deref().unwrap_or("127.0.0.1:50051");
        let estimator = default_estimator(&settings);
        let (top_k, draws) = match estimator.0 {
            Estimator::HeadSampled => (HEAD_DEFAULT, HEAD_DRAWS_DEFAULT),
            Estimator::TopK | Estimator::Sampled => (TOP_K_DEFAULT, DRAWS_DEFAULT),
        };
        let lease = LeaseOptions::default();
        let config = Self {
            model: settings.model.unwrap_or_default(),
            tokenizer: settings.tokenizer,
            corpus: settings.corpus.unwrap_or_default(),
            strict: settings.strict.unwrap_or_default(),
            chat_template_kwargs: settings.chat_template_kwargs,
            seq_len: settings.seq_len.unwrap_or(512),
            batch_size: settings.batch_size.unwrap_or(1),
            estimator,
            top_k: settings.top_k.unwrap_or(top_k),
            draws: settings.draws.unwrap_or(draws),
            sample_seed: settings.sample_seed.unwrap_or_default(),
            temperatures: settings.temperatures.unwrap_or_else(|| vec![1.0, 2.0, 4.0]),
            value_coding: settings.value_coding.unwrap_or_default(),
            state: settings.state.unwrap_or_default(),
            dtype: settings.dtype.unwrap_or_default(),
            device: settings.device.unwrap_or_default(),
            memory_budget_bytes: settings.memory_budget_bytes,
            bind: BindAddress::parse(bind)?,
            token_file: settings.token_file,
            tls_cert: settings.tls_cert,
            tls_key: settings.tls_key,
            queue: settings.queue.unwrap_or(32),
            vram_mode: settings.vram_mode.unwrap_or_default(),
            window: settings.window.unwrap_or(lease.window),
            yield_timeout_s: settings
                .yield_timeout_s
                .unwrap_or(lease.yield_timeout.as_secs()),
            chunk_rows: settings.chunk_rows.unwrap_or(128),
            threads: settings.threads,
            cache: settings.cache,
            shard_bytes: settings.shard_bytes.unwrap_or(SHARD_BYTES_DEFAULT),
            part: None,
            any_backend: false,
            spool_dir: settings.spool_dir,
            port_file: settings.port_file,
            json: settings.json.unwrap_or_default(),
        };
        config.check_access()?;
        config.check_numbers()?;
        config.check_estimator()?;
        Ok(config)
    }

    /// Who may connect: anything but this machine needs a token and encryption.
    fn check_access(&self) -> Result<()> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(refuse(
                "tls-cert",
                "goes together with --tls-key; give both or neither",
            ));
        }
        let has_token = self.token_file.is_some() || Auth::variable().is_some();
        let protected = has_token && self.tls_cert.is_some();
        if !self.bind.is_local() && !protected {
            let reason = format!(
                "{} can be reached from other machines; give --token-file, --tls-cert and --tls-key, or bind to 127.0.0.1 or unix:PATH",
                self.bind
            );
            return Err(refuse("bind", reason));
        }
        if self.port_file.is_some() && matches!(self.bind, BindAddress::Unix(_)) {
            return Err(refuse("port-file", "a unix socket has no port"));
        }
        Ok(())
    }

    /// These settings with what an automatic arithmetic is on `device`.
    #[must_use]
    pub fn on(&self, device: &Device) -> Self {
        Self {
            dtype: self.dtype.resolved(device),
            ..self.clone()
        }
    }

    /// Whether a model was named; a complete cache is served without one.
    pub fn has_model(&self) -> bool {
        !self.model.as_os_str().is_empty()
    }

    /// How the lease of the device goes.
    pub fn lease(&self) -> LeaseOptions {
        LeaseOptions {
            window: self.window,
            yield_timeout: Duration::from_secs(self.yield_timeout_s),
            ..LeaseOptions::default()
        }
    }

    /// Whether this process computes the shard with this number.
    pub fn is_mine(&self, shard: u32) -> bool {
        self.part.as_ref().is_none_or(|part| part.holds(shard))
    }

    fn check_numbers(&self) -> Result<()> {
        let served_as_it_is = self.cache.is_some() && !self.has_model();
        if !self.has_model() && !served_as_it_is {
            return Err(refuse(
                "model",
                "name the teacher's directory or its name on the hub, or a finished cache with --cache",
            ));
        }
        if self.corpus.is_empty() && !served_as_it_is {
            return Err(refuse(
                "corpus",
                "name at least one .txt, .md, .jsonl or .parquet file",
            ));
        }
        within("seq-len", self.seq_len, SEQ_LEN_MIN, SEQ_LEN_MAX)?;
        within("batch-size", self.batch_size, 1, BATCH_SIZE_MAX)?;
        within("top-k", self.top_k, 1, KEPT_ENTRIES_MAX)?;
        within("queue", self.queue, 1, QUEUE_MAX)?;
        let shard_bytes = usize::try_from(self.shard_bytes).unwrap_or(usize::MAX);
        within("shard-bytes", shard_bytes, 1, SHARD_BYTES_MAX)?;
        within("window", self.window, 1, WINDOW_MAX)?;
        let yield_timeout_s = usize::try_from(self.yield_timeout_s).unwrap_or(usize::MAX);
        within(
            "yield-timeout-s",
            yield_timeout_s,
            1,
            YIELD_TIMEOUT_S_MAX as usize,
        )?;
        within("chunk-rows", self.chunk_rows, 1, CHUNK_ROWS_MAX)?;
        within("threads", self.threads.unwrap_or(1), 1, THREADS_MAX)?;
        within("temperatures", self.temperatures.len(), 1, TEMPERATURES_MAX)?;
        let positive = self
            .temperatures
            .iter()
            .all(|tau| tau.is_finite() && *tau > 0.0);
        let distinct: HashSet<u32> = self.temperatures.iter().map(|tau| tau.to_bits()).collect();
        if !positive || distinct.len() != self.temperatures.len() {
            return Err(refuse(
                "temperatures",
                "must be positive, finite and different",
            ));
        }
        Ok(())
    }

    /// What is kept of a row has a limit, and the weights of draws need their temperature.
    fn check_estimator(&self) -> Result<()> {
        within("draws", self.draws, 1, KEPT_ENTRIES_MAX)?;
        if self.sample_seed > SAMPLE_SEED_MAX {
            let reason = format!("{} is above {SAMPLE_SEED_MAX}", self.sample_seed);
            return Err(refuse("sample-seed", reason));
        }
        if self.estimator.0 != Estimator::HeadSampled {
            return Ok(());
        }
        let entries = self.top_k.saturating_add(self.draws);
        if entries > KEPT_ENTRIES_MAX {
            let reason = format!(
                "{} draws beside --top-k {} may be {entries} entries a token, above the limit of {KEPT_ENTRIES_MAX}",
                self.draws, self.top_k
            );
            return Err(refuse("draws", reason));
        }
        if !self.temperatures.contains(&1.0) {
            return Err(refuse(
                "temperatures",
                "--estimator head+sampled needs 1 among them: its draws weigh what the head leaves at temperature 1",
            ));
        }
        Ok(())
    }

    /// The settings as the TOML that `--config` reads.
    ///
    /// # Errors
    /// `Config` naming a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| refuse("print-config", e.to_string()))
    }
}

/// Where a cache is gone on with, what nobody set is as it was captured.
fn with_captured(settings: Settings) -> Result<Settings> {
    let captured = match &settings.cache {
        Some(path) => Cache::captured_settings(path)?,
        None => None,
    };
    let Some(captured) = captured else {
        return Ok(settings);
    };
    let mut table: toml::Table = captured
        .parse()
        .map_err(|e: toml::de::Error| refuse("cache", e.to_string()))?;
    table.retain(|key: &str, _| !plan::IDENTITY_KEYS.contains(&key));
    let base: Settings = table
        .try_into()
        .map_err(|e: toml::de::Error| refuse("cache", e.to_string()))?;
    base.overlaid_with(&settings)
}

/// What is asked for, or the cheapest that does as well as the whole distribution (docs/losses.md). Who names only a K means
/// the K largest logits, and drawn rows are for temperature 1.
fn default_estimator(settings: &Settings) -> EstimatorSetting {
    let temperatures = settings.temperatures.as_ref();
    let at_one = temperatures.is_none_or(|temperatures| temperatures.contains(&1.0));
    let default = match settings.top_k {
        None if at_one => Estimator::HeadSampled,
        _ => Estimator::TopK,
    };
    settings.estimator.unwrap_or(EstimatorSetting(default))
}

fn refuse(key: &'static str, reason: impl Into<String>) -> Error {
    let reason = reason.into();
    Error::Config { key, reason }
}

fn within(key: &'static str, value: usize, min: usize, max: usize) -> Result<()> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(refuse(key, format!("{value} is outside {min} to {max}")))
    }
}

#[cfg(test)]
mod tests;
