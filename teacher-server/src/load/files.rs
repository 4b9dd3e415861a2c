//! Provides what a teacher consists of on disk: tokenizer, shape and weights, of a model directory or a GGUF file.

use std::path::Path;

use distill_hub::Wanted;
use distill_model::{ModelConfig, Nf4Matrix, Weights};
use distill_text::TokenizerFiles;

use super::located;
use crate::{Error, Result, config::Config};

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
        let given = config.tokenizer.as_deref();
        let given = given.map(|given| match located(given, Wanted::Tokenizer, stopped) {
            Err(Error::Hub(e)) => Err(Error::Config {
                key: "tokenizer",
                reason: e.to_string(),
            }),
            found => found,
        });
        let given = given.transpose()?;
        if path.is_dir() {
            let directory = given.as_deref().unwrap_or(&path);
            let tokenizer = TokenizerFiles::open(directory)?;
            let model = ModelConfig::load_teacher(&path)?;
            tokenizer.check_head(model.vocab_size, &path.join("config.json"))?;
            let weights = Weights::open(&path)?;
            return Ok(Self {
                tokenizer,
                model,
                weights,
            });
        }
        let weights = Weights::open(&path)?;
        let tokenizer = tokenizer(&weights, given.as_deref(), &path)?;
        let model = weights.model_config()?;
        tokenizer.check_head(model.vocab_size, &path)?;
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
                    true => 2 * self.weights.raw(name)?.2.len() as u64,
                    false => self.weights.shape(name)?.iter().product::<usize>() as u64,
                };
            }
        }
        Ok(count)
    }
}

fn tokenizer(weights: &Weights, given: Option<&Path>, path: &Path) -> Result<TokenizerFiles> {
    Ok(match (given, weights.gguf()) {
        (Some(directory), _) => TokenizerFiles::open(directory)?,
        (None, Some(gguf)) => TokenizerFiles::from_texts(path, gguf.tokenizer_files()?)?,
        (None, None) => TokenizerFiles::open(path)?,
    })
}
