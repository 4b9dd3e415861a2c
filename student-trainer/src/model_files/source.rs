//! Provides the model to read: a Hugging Face directory or a GGUF file, behind one face.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use distill_model::{Gguf, ModelConfig, Nf4Matrix, Weights, is_gguf};
use distill_text::TokenizerFiles;
use safetensors::Dtype;
use serde_json::Value;

use super::FloatType;
use crate::{Error, Result, files::write_atomically};

const EMBEDDING: &str = "model.embed_tokens.weight";
/// How the model generates: ids that end a text, sampling.
const GENERATION: &str = "generation_config.json";

/// Where tensors come from.
pub(crate) enum Source {
    /// safetensors beside a config.json.
    Directory {
        directory: PathBuf,
        config: Box<ModelConfig>,
        weights: Weights,
    },
    /// One GGUF file.
    Gguf(Box<Gguf>),
}

impl Source {
    /// # Errors
    /// Neither of both, or one that cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let config = ModelConfig::load(path)?;
            let weights = Weights::open(path)?;
            return Ok(Self::Directory {
                directory: path.to_owned(),
                config: Box::new(weights.settled(&config)),
                weights,
            });
        }
        if is_gguf(path) {
            return Ok(Self::Gguf(Box::new(Gguf::open(path)?)));
        }
        Err(Error::file(path, "is neither a directory nor a .gguf file"))
    }

    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Directory { config, .. } => config,
            Self::Gguf(gguf) => gguf.config(),
        }
    }

    /// The configuration, with the head as the tensors have it.
    pub fn config_json(&self) -> Result<Value> {
        match self {
            Self::Directory { weights, .. } => {
                Ok(weights.settled_json(weights.config_json()?.unwrap_or_default()))
            }
            Self::Gguf(gguf) => Ok(gguf.config_json().clone()),
        }
    }

    /// A tensor by its Hugging Face name, f32; dequantised where it is stored in four bits.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        match self {
            Self::Directory { weights, .. } => Ok(distill_model::dequantized(weights, name)?),
            Self::Gguf(gguf) => Ok(gguf.tensor(name)?),
        }
    }

    /// The plain type that says as much as the tensors are stored with: that of the embedding, which is never in four bits; bf16
    /// for a GGUF file.
    pub fn float_type(&self) -> Result<FloatType> {
        let Self::Directory { weights, .. } = self else {
            return Ok(FloatType::Bf16);
        };
        Ok(match weights.raw(EMBEDDING)?.0 {
            Dtype::F16 => FloatType::F16,
            Dtype::F32 | Dtype::F64 => FloatType::F32,
            _ => FloatType::Bf16,
        })
    }

    /// Whether anything is stored in bitsandbytes' four bits.
    pub fn is_quantized(&self) -> bool {
        match self {
            Self::Directory { weights, .. } => Nf4Matrix::any_stored(weights),
            Self::Gguf(_) => false,
        }
    }

    /// Puts the tokenizer's files into `out`: those of `other`, else the model's own. The head must have a row for each id.
    pub fn write_tokenizer(&self, other: Option<&Path>, out: &Path) -> Result<()> {
        let own = match self {
            Self::Directory { directory, .. } => Some(directory.as_path()),
            Self::Gguf(_) => None,
        };
        if let Some(directory) = other.or(own) {
            let tokenizer = TokenizerFiles::open(directory)?;
            self.check_head(&tokenizer)?;
            tokenizer.copy_to(out)?;
            // It names the end of text where tokenizer_config.json does not.
            let (from, to) = (directory.join(GENERATION), out.join(GENERATION));
            if from.is_file() {
                fs::copy(&from, to).map_err(Error::io("copy", &from))?;
            }
            return Ok(());
        }
        let Self::Gguf(gguf) = self else {
            return Ok(());
        };
        for (name, text) in gguf.tokenizer_files()? {
            write_atomically(&out.join(name), text.as_bytes())?;
        }
        // It must be one that the programs can read.
        self.check_head(&TokenizerFiles::open(out)?)
    }

    fn check_head(&self, tokenizer: &TokenizerFiles) -> Result<()> {
        let config = match self {
            Self::Directory { directory, .. } => directory.join("config.json"),
            Self::Gguf(gguf) => gguf.path().to_owned(),
        };
        Ok(tokenizer.check_head(self.config().vocab_size, &config)?)
    }
}
