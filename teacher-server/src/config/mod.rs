/*! Provides the checked configuration: flags over file over preset over defaults.

Nothing here knows of a service, a cache or a plan: what a cache was captured with is handed in as settings.
*/

mod address;
mod foreign;
mod part;
mod preset;
mod scheduler;
mod settings;
mod state;
mod values;

use std::{collections::HashSet, ffi::OsString, path::Path};

use candle_core::Device;
use distill_program::settings::{self as scheme, Keys, Resolved, Scheme, number, overlay};
use distill_proto::{Estimator, limits::KEPT_ENTRIES_MAX};
use distill_text::TokenizerFiles;
use toml::{Table, Value};

use crate::{Error, Result};
pub use address::BindAddress;
pub use foreign::with_our_name;
pub use part::Part;
pub use settings::{
    BATCH_SIZE_MAX, CHUNK_ROWS_MAX, Config, QUEUE_MAX, SAMPLE_SEED_MAX, SHARD_BYTES_MAX,
    THREADS_MAX, WINDOW_MAX, YIELD_TIMEOUT_S_MAX,
};
use settings::{DRAWS_DEFAULT, HEAD_DEFAULT, HEAD_DRAWS_DEFAULT, TOP_K_DEFAULT};
pub use state::StateSetting;
pub use values::{EstimatorSetting, ValueCodingSetting, VramMode};

/// Of the environment: the token, where no file is named.
pub const TOKEN_VARIABLE: &str = "OT_DISTILL_TOKEN";

/// The token in the environment, where there is one.
pub fn token_variable() -> Option<OsString> {
    std::env::var_os(TOKEN_VARIABLE)
}

/// The settings that the cache in a directory was captured with, where there is one.
pub type Captured<'a> = &'a dyn Fn(&Path) -> Result<Option<Table>>;

impl Config {
    /// Reads `file`, lays `flags` over it, and checks the result. Where a cache is gone on with, what nobody set is as it
    /// was captured.
    ///
    /// # Errors
    /// `Config` naming the flag, or `ConfigFile` naming the file and the key.
    pub fn validate(
        command: &str,
        file: Option<&Path>,
        flags: Table,
        captured: Captured<'_>,
    ) -> Result<Resolved<Self>> {
        let known = Self::keys();
        let scheme = Scheme {
            known: &known,
            explain: foreign::explain_or_nearest,
            settle: |_| Ok(()),
            foundation: &|given| foundation(given, &known, captured),
        };
        let mut resolved = scheme::resolve::<Self, Error>(command, file, flags, &scheme)?;
        // What came of it is in the others.
        resolved.config.preset = None;
        resolved.config.check(command)?;
        Ok(resolved)
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// `Config` naming the flag and what to do.
    pub(crate) fn check(&self, command: &str) -> Result<()> {
        self.check_places(command)?;
        scheme::check_limits(self)?;
        self.check_access()?;
        self.check_temperatures()?;
        self.check_estimator()
    }

    /// Gives the chat template the variables that the settings name.
    pub fn set_template_kwargs(&self, tokenizer: &mut TokenizerFiles) {
        if let Some(kwargs) = &self.chat_template_kwargs {
            tokenizer.set_chat_template_kwargs(kwargs);
        }
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

    /// Whether this process computes the shard with this number.
    pub fn is_mine(&self, shard: u32) -> bool {
        self.part.as_ref().is_none_or(|part| part.holds(shard))
    }

    /// What there is to do needs its files.
    fn check_places(&self, command: &str) -> Result<()> {
        if command == "precompute" && self.cache.is_none() {
            return Err(Error::config("out", "name the cache's directory"));
        }
        let served_as_it_is = self.cache.is_some() && !self.has_model();
        if !self.has_model() && !served_as_it_is {
            return Err(Error::config(
                "model",
                "name the teacher's directory or its name on the hub, or a finished cache with --cache",
            ));
        }
        if self.corpus.is_empty() && !served_as_it_is {
            return Err(Error::config(
                "corpus",
                "name at least one .txt, .md, .jsonl or .parquet file",
            ));
        }
        Ok(())
    }

    /// Who may connect: anything but this machine needs a token and encryption.
    fn check_access(&self) -> Result<()> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(Error::config(
                "tls-cert",
                "goes together with --tls-key; give both or neither",
            ));
        }
        let has_token = self.token_file.is_some() || token_variable().is_some();
        let protected = has_token && self.tls_cert.is_some();
        if !self.bind.is_local() && !protected {
            let reason = format!(
                "{} can be reached from other machines; give --token-file, --tls-cert and --tls-key, or bind to 127.0.0.1 or unix:PATH",
                self.bind
            );
            return Err(Error::config("bind", reason));
        }
        if self.port_file.is_some() && matches!(self.bind, BindAddress::Unix(_)) {
            return Err(Error::config("port-file", "a unix socket has no port"));
        }
        Ok(())
    }

    fn check_temperatures(&self) -> Result<()> {
        let temperatures = &self.temperatures;
        let positive = temperatures.iter().all(|tau| tau.is_finite() && *tau > 0.0);
        let distinct: HashSet<u32> = temperatures.iter().map(|tau| tau.to_bits()).collect();
        if positive && distinct.len() == temperatures.len() {
            return Ok(());
        }
        Err(Error::config(
            "temperatures",
            "must be positive, finite and different",
        ))
    }

    /// What is kept of a row has a limit, and the weights of draws need their temperature.
    fn check_estimator(&self) -> Result<()> {
        let estimator = self.estimator.0;
        if !(estimator.has_head() && estimator.is_drawn()) {
            return Ok(());
        }
        let entries = self.top_k.saturating_add(self.draws);
        if entries > KEPT_ENTRIES_MAX {
            let reason = format!(
                "{} draws beside --top-k {} may be {entries} entries a token, above the limit of {KEPT_ENTRIES_MAX}",
                self.draws, self.top_k
            );
            return Err(Error::config("draws", reason));
        }
        if !self.temperatures.contains(&1.0) {
            return Err(Error::config(
                "temperatures",
                format!(
                    "--estimator {} needs 1 among them: its draws weigh what the head leaves at temperature 1",
                    estimator.name()
                ),
            ));
        }
        Ok(())
    }

    /// The settings as the TOML that `--config` reads.
    ///
    /// # Errors
    /// `Config` naming a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::config("print-config", e.to_string()))
    }
}

/// What lies between the defaults and what was given: a preset, what the cache was captured with, and defaults that follow
/// from other settings.
fn foundation(given: &Table, known: &[scheme::Key], captured: Captured<'_>) -> Result<Table> {
    let mut base = match given.get("cache").and_then(Value::as_str) {
        Some(path) => captured(Path::new(path))?.unwrap_or_default(),
        None => Table::new(),
    };
    for (name, value) in &base {
        let key = known.iter().find(|key| key.path == *name);
        let key = key.ok_or_else(|| {
            format!("it was captured with `{name}`, which is no setting of this build")
        });
        key.and_then(|key| (key.check)(value.clone()))
            .map_err(|reason| Error::config("cache", reason))?;
    }
    if let Some(name) = given.get("preset") {
        overlay(&mut base, preset::preset(name)?);
    }
    let get = |key: &str| given.get(key).or_else(|| base.get(key));
    let estimator = match get("estimator") {
        Some(word) => word
            .clone()
            .try_into()
            .map_err(|e: toml::de::Error| Error::config("estimator", e.message()))?,
        None => default_estimator(get("top_k"), get("temperatures")),
    };
    let (top_k, draws) = if estimator.0.has_head() && estimator.0.is_drawn() {
        (HEAD_DEFAULT, HEAD_DRAWS_DEFAULT)
    } else {
        (TOP_K_DEFAULT, DRAWS_DEFAULT)
    };
    base.entry("estimator")
        .or_insert_with(|| estimator.to_string().into());
    for (key, default) in [("top_k", top_k), ("draws", draws)] {
        base.entry(key).or_insert(Value::Integer(default as i64));
    }
    Ok(base)
}

/// The cheapest that does as well as the whole distribution (docs/which-loss.md). Who names only a K means the K largest logits,
/// and drawn rows are for temperature 1.
fn default_estimator(top_k: Option<&Value>, temperatures: Option<&Value>) -> EstimatorSetting {
    let is_one = |tau: &Value| number(tau) == Some(1.0);
    let temperatures = temperatures.and_then(Value::as_array);
    let at_one = temperatures.is_none_or(|temperatures| temperatures.iter().any(is_one));
    if top_k.is_none() && at_one {
        EstimatorSetting::default()
    } else {
        EstimatorSetting(Estimator::TopK)
    }
}

#[cfg(test)]
mod tests;
