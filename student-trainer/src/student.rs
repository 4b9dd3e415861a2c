//! Provides the student: its directory, tokenizer, decoder, and where and in what type it computes.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Instant,
};

use candle_core::{DType, Device, Tensor};
use distill_hub::{Options, Wanted};
use distill_model::{
    Base, Decoder, DeviceChoice, LoadOptions, LoraConfig, ModelConfig, Weights, check_weights_fit,
    explained,
};
use distill_text::TokenizerFiles;

use crate::{
    Error, Result,
    config::{ComputeDtype, Quantize},
    loss::LossError,
    ranks::Ranks,
    shutdown::Shutdown,
};

/// What is known of a student before its weights are read: enough to agree with a teacher.
pub struct StudentFiles {
    /// The model's directory.
    pub dir: PathBuf,
    /// What an adapter calls its base: the name on the hub, or the whole path.
    pub base: String,
    /// The base's revision on the hub, where one was named.
    pub revision: Option<String>,
    /// `config.json`.
    pub config: ModelConfig,
    /// The tokenizer's files.
    pub tokenizer: TokenizerFiles,
    weights: OnceLock<Weights>,
}

impl StudentFiles {
    /// Opens a model directory, or the model of this name on the hub, which is fetched as far as it is not in the cache.
    ///
    /// # Errors
    /// Neither of both, or what [`StudentFiles::open`] and the hub say.
    pub fn find(given: &Path, shutdown: &Shutdown) -> Result<Self> {
        let stopped = || shutdown.is_requested();
        let located = distill_hub::resolve(given, &Options::model(&stopped))?;
        let mut files = Self::open(&located.path)?;
        if let Some(reference) = located.reference {
            files.base = reference.repo;
            files.revision = reference.revision;
        }
        Ok(files)
    }

    /// Opens a model directory.
    ///
    /// # Errors
    /// The file that is missing or cannot be used.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::file(
                dir,
                "is not a directory of safetensors; name the student's with --student DIR, or make one with quantize --from",
            ));
        }
        let path = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let config = ModelConfig::load(dir)?;
        let tokenizer = TokenizerFiles::open(dir)?;
        tokenizer.check_head(config.vocab_size, &dir.join("config.json"))?;
        Ok(Self {
            dir: dir.to_owned(),
            base: path.to_string_lossy().into_owned(),
            revision: None,
            config,
            tokenizer,
            weights: OnceLock::new(),
        })
    }

    /// The weights, opened once: a run names what it trains by their fingerprint, and reads them later.
    ///
    /// # Errors
    /// As [`Weights::open`]; a config.json that is another than at first.
    pub fn weights(&self) -> Result<&Weights> {
        if let Some(weights) = self.weights.get() {
            return Ok(weights);
        }
        let weights = Weights::open(&self.dir)?;
        if weights.model_config()? != self.config {
            return Err(Error::Model(distill_model::Error::Changed {
                path: self.dir.join("config.json"),
                how: "it describes another model now".into(),
            }));
        }
        Ok(self.weights.get_or_init(|| weights))
    }

    /// Reads the weights, frozen, with adapters where `lora` says so.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit, or an option that the checkpoint cannot meet.
    pub fn load(
        &self,
        quantize: Quantize,
        place: &Place,
        lora: Option<LoraConfig>,
    ) -> Result<Decoder> {
        let base = match quantize {
            Quantize::Nf4 => Base::QuantizeNf4,
            Quantize::None => Base::AsStored,
        };
        self.load_as(base, place, lora)
    }

    /// Reads the weights, each to be trained, in f32.
    ///
    /// # Errors
    /// As [`Self::load`]; 4-bit weights, by name.
    pub fn load_trainable(&self, place: &Place) -> Result<Decoder> {
        self.load_as(Base::Trainable, place, None)
    }

    fn load_as(&self, base: Base, place: &Place, lora: Option<LoraConfig>) -> Result<Decoder> {
        let start = Instant::now();
        let options = LoadOptions {
            dtype: place.dtype,
            device: place.device.clone(),
            base,
            lora,
        };
        let weights = self.weights()?;
        let remedy = match base {
            Base::AsStored => "hold it in four bits with --quantize nf4, or use --dtype bf16",
            Base::QuantizeNf4 => "use --dtype bf16, or a smaller student",
            Base::Trainable => "train adapters with --tune lora, or a smaller student",
        };
        let budget = place.memory_budget_bytes;
        check_weights_fit(&self.config, weights, &options, budget, remedy)?;
        let decoder = Decoder::load(&self.config, weights, &options)?;
        distill_program::memory::give_back();
        let trained: usize = decoder
            .parameters()
            .iter()
            .map(|(_, var)| var.elem_count())
            .sum();
        tracing::info!(
            "student: {} layers of width {} from {} in {:.1} s; {trained} trainable parameters",
            self.config.num_hidden_layers,
            self.config.hidden_size,
            self.dir.display(),
            start.elapsed().as_secs_f64()
        );
        Ok(decoder)
    }
}

/// The path that was given, or the repository of this name on the hub, fetched as far as `wanted` asks.
///
/// # Errors
/// Neither of both, or what the hub says.
pub fn located(given: &Path, wanted: Wanted, shutdown: &Shutdown) -> Result<PathBuf> {
    let stopped = || shutdown.is_requested();
    let options = Options {
        wanted,
        stopped: &stopped,
    };
    Ok(distill_hub::resolve(given, &options)?.path)
}

/// Token ids `[B, T]` in host memory, where the decoder checks them; shorter sequences padded at the end: a position never sees what comes after it, so any id pads.
///
/// # Errors
/// A tensor error; no sequence at all.
pub fn padded_ids<'a>(
    sequences: impl ExactSizeIterator<Item = &'a [u32]> + Clone,
) -> Result<Tensor> {
    let (count, length) = (sequences.len(), sequences.clone().map(<[u32]>::len).max());
    let length = length.unwrap_or(0);
    let mut ids = Vec::with_capacity(count * length);
    for sequence in sequences {
        ids.extend(sequence);
        ids.resize(ids.len() + length - sequence.len(), 0);
    }
    Ok(Tensor::from_vec(ids, (count, length), &Device::Cpu)?)
}

/// Where and in what type the student computes.
#[derive(Clone, Debug)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// Activations and dense frozen weights.
    pub dtype: DType,
    /// What weights may take; unset: what is free.
    pub memory_budget_bytes: Option<u64>,
}

impl Place {
    /// Reads `auto`, `cpu`, `cuda` or `cuda:N`, and resolves an automatic type: f32 on the CPU, bf16 on a GPU.
    ///
    /// # Errors
    /// Another word, or a GPU that is not there or that this build cannot use.
    pub fn choose(device: &str, dtype: ComputeDtype) -> Result<Self> {
        let choice: DeviceChoice = device.parse().map_err(Error::Config)?;
        let device = choice.open()?;
        let dtype = dtype.on(&device);
        Ok(Self {
            device,
            dtype,
            memory_budget_bytes: None,
        })
    }

    /// As [`choose`](Self::choose) for one of several ranks, which share the GPUs of their machine: `auto` and `cuda` are another one
    /// for each.
    ///
    /// # Errors
    /// As there.
    pub fn choose_among(device: &str, dtype: ComputeDtype, ranks: &dyn Ranks) -> Result<Self> {
        if ranks.is_alone() || !["auto", "cuda"].contains(&device) {
            return Self::choose(device, dtype);
        }
        let choice: DeviceChoice = device.parse().map_err(Error::Config)?;
        let own = choice.of_local_rank(ranks.local_rank());
        Self::choose(&own.to_string(), dtype)
    }

    /// With a limit of what weights may take, in place of what is free.
    #[must_use]
    pub fn within(self, memory_budget_bytes: Option<u64>) -> Self {
        Self {
            memory_budget_bytes,
            ..self
        }
    }

    /// An error of work on the device, with what to do where it had no room for it.
    pub fn explained(&self, error: Error) -> Error {
        let remedy = "lower --batch-size, --pack-tokens or --chunk-rows, take --dtype bf16 or --checkpointing on; `student-trainer \
                      plan` says what each part takes";
        match error {
            Error::Tensor(error)
            | Error::Model(distill_model::Error::Candle(error))
            | Error::Loss(LossError::Tensor(error)) => {
                explained(error, &self.device, "the student", remedy).into()
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_with_more_ids_than_head_rows_is_named_before_anything_is_read() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let dir = tempfile::tempdir().unwrap();
        let copy = |from: PathBuf, change: fn(String) -> String| {
            let text = change(std::fs::read_to_string(&from).unwrap());
            std::fs::write(dir.path().join(from.file_name().unwrap()), text).unwrap();
        };
        copy(fixtures.join("tokenizer/tokenizer.json"), |text| text);
        copy(fixtures.join("tokenizer/tokenizer_config.json"), |text| {
            text
        });
        let config = fixtures.join("models/qwen2-untied/config.json");
        copy(config.clone(), |text| text);
        let files = StudentFiles::open(dir.path()).unwrap();
        assert_eq!(files.tokenizer.size() as usize, files.config.vocab_size);
        copy(config, |text| {
            text.replace("\"vocab_size\": 384", "\"vocab_size\": 383")
        });
        let error = StudentFiles::open(dir.path()).err().unwrap().to_string();
        for expected in ["tokenizer.json", "384 ids", "383 rows", "config.json"] {
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_device_is_read_and_the_type_follows_it() {
        let place = Place::choose("cpu", ComputeDtype::Auto).unwrap();
        assert!(place.device.is_cpu() && place.dtype == DType::F32);
        assert_eq!(
            Place::choose("cpu", ComputeDtype::Bf16).unwrap().dtype,
            DType::BF16
        );
        let message = Place::choose("gpu", ComputeDtype::Auto)
            .unwrap_err()
            .to_string();
        assert!(message.contains("cuda:N"), "{message}");
    }
}
