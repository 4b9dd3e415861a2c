//! Provides the student: its directory, tokenizer, decoder, and where and in what type it computes.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use candle_core::{DType, Device, Tensor};
use distill_model::{Base, Decoder, LoadOptions, LoraConfig, ModelConfig, Weights};
use distill_text::TokenizerFiles;

use crate::{
    Error, Result,
    config::{ComputeDtype, Quantize},
};

/// What is known of a student before its weights are read: enough to agree with a teacher.
pub struct StudentFiles {
    /// The model's directory.
    pub dir: PathBuf,
    /// `config.json`.
    pub config: ModelConfig,
    /// The tokenizer's files.
    pub tokenizer: TokenizerFiles,
}

impl StudentFiles {
    /// Opens a model directory.
    ///
    /// # Errors
    /// The file that is missing or cannot be used.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::file(
                dir,
                "is not a directory; name the student's with --student DIR",
            ));
        }
        Ok(Self {
            dir: dir.to_owned(),
            config: ModelConfig::load(dir)?,
            tokenizer: TokenizerFiles::open(dir)?,
        })
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
        let weights = Weights::open(&self.dir)?;
        let decoder = Decoder::load(&self.config, &weights, &options)?;
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

/// Token ids `[B, T]`, shorter sequences padded at the end: a position never sees what comes after it, so any id pads.
///
/// # Errors
/// A tensor error; no sequence at all.
pub fn padded_ids<'a>(
    sequences: impl ExactSizeIterator<Item = &'a [u32]> + Clone,
    device: &Device,
) -> Result<Tensor> {
    let (count, length) = (sequences.len(), sequences.clone().map(<[u32]>::len).max());
    let length = length.unwrap_or(0);
    let mut ids = Vec::with_capacity(count * length);
    for sequence in sequences {
        ids.extend(sequence);
        ids.resize(ids.len() + length - sequence.len(), 0);
    }
    Ok(Tensor::from_vec(ids, (count, length), device)?)
}

/// Where and in what type the student computes.
#[derive(Clone, Debug)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// Activations and dense frozen weights.
    pub dtype: DType,
}

impl Place {
    /// Reads `auto`, `cpu`, `cuda` or `cuda:N`, and resolves an automatic type: f32 on the CPU, bf16 on a GPU.
    ///
    /// # Errors
    /// Another word, or a GPU that is not there or that this build cannot use.
    pub fn choose(device: &str, dtype: ComputeDtype) -> Result<Self> {
        let cuda = |ordinal| {
            Device::new_cuda(ordinal).map_err(|e| {
                Error::Config(format!(
                    "device: no CUDA device {ordinal} ({e}); a GPU needs a build with --features cuda"
                ))
            })
        };
        let device = match device {
            "cpu" => Device::Cpu,
            "auto" => Device::cuda_if_available(0)?,
            "cuda" => cuda(0)?,
            other => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(ordinal) => cuda(ordinal)?,
                None => {
                    let allowed = "use auto, cpu, cuda or cuda:N";
                    return Err(Error::Config(format!(
                        "device: `{other}` is not known; {allowed}"
                    )));
                }
            },
        };
        let dtype = match dtype {
            ComputeDtype::F32 => DType::F32,
            ComputeDtype::Bf16 => DType::BF16,
            ComputeDtype::F16 => DType::F16,
            ComputeDtype::Auto if device.is_cpu() => DType::F32,
            ComputeDtype::Auto => DType::BF16,
        };
        Ok(Self { device, dtype })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
