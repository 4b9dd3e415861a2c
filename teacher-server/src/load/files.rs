//! Provides what a teacher consists of on disk: tokenizer, shape and weights, of a model directory or a GGUF file.

use std::path::{Path, PathBuf};

use distill_hub::{Options, Wanted};
use distill_model::{ModelConfig, Nf4Matrix, Weights};
use distill_text::TokenizerFiles;

use crate::{Error, Result, config::Config};

/// The path that was given, or the repository of this name on the hub, fetched as far as `wanted` asks.
///
/// # Errors
/// `Hub`, or `ShuttingDown` once `stopped` says so.
pub(crate) fn located(given: &Path, wanted: Wanted, stopped: &dyn Fn() -> bool) -> Result<PathBuf> {
    match distill_hub::resolve(given, &Options { wanted, stopped }) {
        Err(distill_hub::Error::Stopped) => Err(Error::ShuttingDown),
        located => Ok(located?.path),
    }
}

/// The files of a teacher, open; no weight is in memory.
pub(super) struct TeacherFiles {
    pub tokenizer: TokenizerFiles,
    pub model: ModelConfig,
    pub weights: Weights,
}

impl TeacherFiles {
    /// Finds model and tokenizer, on the hub where they are none of this machine's files, and opens them.
    ///
    /// # Errors
    /// `Hub`; what cannot be read; `ShuttingDown` once `stopped` says so.
    pub fn open(config: &Config, stopped: &dyn Fn() -> bool) -> Result<Self> {
        let path = located(&config.model, Wanted::Model, stopped)?;
        let given = given_tokenizer(config, stopped)?;
        let weights = Weights::open(&path)?;
        let mut tokenizer = tokenizer(&weights, given.as_deref(), &path)?;
        config.set_template_kwargs(&mut tokenizer);
        let model = weights.model_config()?;
        let named = if path.is_dir() {
            path.join("config.json")
        } else {
            path
        };
        tokenizer.check_head(model.vocab_size, &named)?;
        Ok(Self {
            tokenizer,
            model,
            weights,
        })
    }

    /// Numbers in the checkpoint, tied heads once; where four bits are packed by bitsandbytes, whatever the type they are stored
    /// as, a byte holds two.
    pub fn parameter_count(&self) -> Result<u64> {
        let mut count = 0;
        for name in self.weights.names() {
            if name.ends_with(".weight") || name.ends_with(".bias") {
                count += match Nf4Matrix::is_stored(&self.weights, name) {
                    true => 2 * self.weights.raw_bytes(name)?,
                    false => self.weights.shape(name)?.iter().product::<usize>() as u64,
                };
            }
        }
        Ok(count)
    }
}

/// What is known of a teacher without its weights.
pub(super) struct Shape {
    pub tokenizer: TokenizerFiles,
    pub model: ModelConfig,
}

impl Shape {
    /// As [`TeacherFiles::open`]. The weights of a model on the hub are not fetched for it, unless all is in a GGUF file.
    ///
    /// # Errors
    /// As [`TeacherFiles::open`].
    pub fn find(config: &Config, stopped: &dyn Fn() -> bool) -> Result<Self> {
        let path = match located(&config.model, Wanted::Config, stopped) {
            Err(Error::Hub(distill_hub::Error::Unusable { .. })) => {
                located(&config.model, Wanted::Model, stopped)?
            }
            found => found?,
        };
        if !path.is_dir() {
            let TeacherFiles {
                tokenizer, model, ..
            } = TeacherFiles::open(config, stopped)?;
            return Ok(Self { tokenizer, model });
        }
        let directory = match given_tokenizer(config, stopped)? {
            Some(given) => given,
            None => located(&config.model, Wanted::Tokenizer, stopped)?,
        };
        let mut tokenizer = TokenizerFiles::open(&directory)?;
        config.set_template_kwargs(&mut tokenizer);
        let model = ModelConfig::load_teacher(&path)?;
        tokenizer.check_head(model.vocab_size, &path.join("config.json"))?;
        Ok(Self { tokenizer, model })
    }
}

/// The directory that `--tokenizer` names.
fn given_tokenizer(config: &Config, stopped: &dyn Fn() -> bool) -> Result<Option<PathBuf>> {
    let given = config.tokenizer.as_deref();
    let given = given.map(|given| match located(given, Wanted::Tokenizer, stopped) {
        Err(Error::Hub(e)) => Err(Error::config("tokenizer", e.to_string())),
        found => found,
    });
    given.transpose()
}

fn tokenizer(weights: &Weights, given: Option<&Path>, path: &Path) -> Result<TokenizerFiles> {
    Ok(match (given, weights.gguf()) {
        (Some(directory), _) => TokenizerFiles::open(directory)?,
        (None, Some(gguf)) => TokenizerFiles::from_texts(path, gguf.tokenizer_files()?)?,
        (None, None) => TokenizerFiles::open(path)?,
    })
}
