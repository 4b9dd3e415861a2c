//! Provides the weights of a model directory or of a GGUF file: tensors by name, converted, packed or raw, and their
//! fingerprint.
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

#[cfg(test)]
mod changed_tests;
mod convert;
mod fingerprint;
mod head;
#[cfg(test)]
mod head_tests;
mod header;
mod index;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use convert::to_f32;
pub(crate) use head::{EMBEDDING, HEAD};
pub use header::{DIMENSIONS_MAX, HEADER_BYTES_MAX};
pub use index::{INDEX_BYTES_MAX, SHARDS_MAX};
pub(crate) use source::SourceFile;

use crate::gguf::is_gguf;
use crate::{Error, Gguf, ModelConfig, PackedMatrix, Result};
use candle_core::{DType, Device, Tensor};
use header::TensorInfo;
use index::WeightFiles;
use safetensors::Dtype;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest config.json accepted, in bytes.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// The tensors of `model.safetensors`, of the shards that `model.safetensors.index.json` names, or of a GGUF file, by their
/// Hugging Face names.
///
/// Files are kept open, and a tensor is read when it is asked for, as often as that is. All of it is of the moment when the
/// files were opened: once one was written to, its tensors are refused, unless they hold the bytes that were fingerprinted.
pub struct Weights {
    /// The directory, or the file when opened with [`Weights::open_file`].
    path: PathBuf,
    /// Where there is a `config.json`: its path, and what it held at opening.
    config: Option<(PathBuf, Vec<u8>)>,
    tensors: BTreeMap<String, (Arc<SourceFile>, TensorInfo)>,
    /// What there is instead of `tensors`, where `path` is such a file.
    gguf: Option<Box<Gguf>>,
    /// Whether the head is a matrix of its own although config.json ties it to the embedding.
    is_untied: bool,
}

impl Weights {
    /// Opens the weights in the model directory `dir`, or those of the GGUF file of this name. Every header is validated
    /// here, so reading a tensor later can only fail for its name or its type.
    ///
    /// # Errors
    /// Names the file and the tensor or field that is missing, truncated or inconsistent.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut weights = Self::none(dir);
        if is_gguf(dir) {
            weights.gguf = Some(Box::new(Gguf::open(dir)?));
            return Ok(weights);
        }
        let config = dir.join("config.json");
        if config.exists() {
            let held = distill_program::files::read(&config, CONFIG_BYTES_MAX);
            let held = held.map_err(|e| Error::io(&config, e.reason))?;
            weights.config = Some((config, held));
        }
        match index::find(dir)? {
            WeightFiles::Single(path) => weights.add_file(&path)?,
            WeightFiles::Sharded { index, shards } => {
                for (shard, names) in shards {
                    weights.add_shard(&index, &shard, names)?;
                }
            }
        }
        weights.settle_head()?;
        Ok(weights)
    }

    /// Opens one safetensors file, such as an adapter.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut weights = Self::none(path);
        weights.add_file(path)?;
        Ok(weights)
    }

    fn none(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            config: None,
            tensors: BTreeMap::new(),
            gguf: None,
            is_untied: false,
        }
    }

    /// The GGUF file, where it is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_deref()
    }

    /// The shape of the model that these are the weights of: from `config.json` as it was at opening, or from the GGUF file.
    ///
    /// # Errors
    /// As [`ModelConfig::load_teacher`].
    pub fn model_config(&self) -> Result<ModelConfig> {
        match (&self.gguf, &self.config) {
            (Some(gguf), _) => Ok(gguf.config().clone()),
            (None, Some((path, held))) => ModelConfig::parse_teacher(held, path),
            (None, None) => ModelConfig::load_teacher(&self.path),
        }
    }

    /// The bytes of `config.json` at opening; `None` where there is none, or the weights are a GGUF file's.
    pub fn config_bytes(&self) -> Option<&[u8]> {
        self.config.as_ref().map(|(_, held)| held.as_slice())
    }

    /// `config.json` as it was at opening, or what it would be of a GGUF file; `None` where there is none.
    ///
    /// # Errors
    /// One that is no JSON.
    pub fn config_json(&self) -> Result<Option<Value>> {
        if let Some(gguf) = &self.gguf {
            return Ok(Some(gguf.config_json().clone()));
        }
        let parse = |(path, held): &(PathBuf, Vec<u8>)| {
            serde_json::from_slice(held).map_err(|e| Error::malformed(path, "JSON", e.to_string()))
        };
        self.config.as_ref().map(parse).transpose()
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let file = Arc::new(SourceFile::open(path)?);
        let tensors = header::read_header(&file)?.into_iter();
        let located = tensors.map(|(name, info)| (name, (file.clone(), info)));
        self.tensors.extend(located);
        Ok(())
    }

    /// Takes the tensors that the index promises from `path`, and only those.
    fn add_shard(&mut self, index: &Path, path: &Path, names: Vec<String>) -> Result<()> {
        let file = Arc::new(SourceFile::open(path)?);
        let mut available = header::read_header(&file)?;
        for name in names {
            let info = available.remove(&name).ok_or_else(|| {
                let message = format!(
                    "promises tensor `{name}` in {}, which does not hold it; download both again",
                    path.display()
                );
                Error::malformed(index, "weight_map", message)
            })?;
            self.tensors.insert(name, (file.clone(), info));
        }
        Ok(())
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let packed = self.gguf.iter().flat_map(|gguf| gguf.names());
        self.tensors.keys().map(String::as_str).chain(packed)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        let packed = self.gguf.as_ref();
        self.tensors.contains_key(name) || packed.is_some_and(|gguf| gguf.contains(name))
    }

    /// The stored shape.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        match &self.gguf {
            Some(gguf) => gguf.shape(name),
            None => Ok(&self.find(name)?.1.shape),
        }
    }

    /// The stored type, shape and little-endian bytes.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Changed`]; [`Error::Unsupported`] for what a GGUF file holds.
    pub fn raw(&self, name: &str) -> Result<(Dtype, &[usize], Vec<u8>)> {
        self.refuse_gguf(name)?;
        let (file, info) = self.find(name)?;
        let bytes = file.unchanged(name, &info.bytes, || file.read_range(&info.bytes))?;
        Ok((info.dtype, &info.shape, bytes))
    }

    /// Bytes that [`raw`](Self::raw) gives, without reading them.
    ///
    /// # Errors
    /// As [`raw`](Self::raw).
    pub fn raw_bytes(&self, name: &str) -> Result<u64> {
        self.refuse_gguf(name)?;
        let (_, info) = self.find(name)?;
        Ok(info.bytes.end - info.bytes.start)
    }

    fn refuse_gguf(&self, name: &str) -> Result<()> {
        if self.gguf.is_none() {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: format!(
                "quantising `{name}` of {} while it is loaded",
                self.path.display()
            ),
            remedy: "convert the file with `student-trainer quantize` first".into(),
        })
    }

    /// The tensor as `dtype` (f32, f64, bf16 or f16) on `device`, converted from any of these with round-to-nearest.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Changed`]; [`Error::Tensor`] when the stored type or `dtype` is not a plain float.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        if let Some(gguf) = &self.gguf {
            let values = gguf.tensor(name)?;
            return Ok(values.to_dtype(dtype)?.to_device(device)?);
        }
        let (file, info) = self.find(name)?;
        let start = info.bytes.start;
        let stored = convert::Stored {
            dtype: info.dtype,
            bytes: file.length(&info.bytes)?,
            read: &|from, out| file.read(start + from as u64, out),
        };
        file.unchanged(name, &info.bytes, || {
            let converted = convert::to_tensor(&stored, &info.shape, dtype, device);
            converted.unwrap_or_else(|| {
                let hint = if convert::is_float(info.dtype) {
                    "use f32, f64, bf16 or f16"
                } else {
                    "a quantised tensor must be read together with its quantisation state"
                };
                let message = format!("cannot be read from {} as {dtype:?}: {hint}", info.dtype);
                Err(self.error(name, message))
            })
        })
    }

    /// The matrix `name` as a GGUF file stores it, on `device`; `None` where it is stored as plain floats that are better held as
    /// a dense tensor: f32 anywhere, 16 bits on a device that multiplies with them.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or what reading the file says.
    pub fn packed(&self, name: &str, device: &Device) -> Result<Option<PackedMatrix>> {
        match &self.gguf {
            Some(gguf) if gguf.stays_packed(name, device.is_cpu())? => {
                gguf.matrix(name, device).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Bytes that [`packed`](Self::packed) takes; `None` where it gives `None`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn packed_bytes(&self, name: &str, device: &Device) -> Result<Option<u64>> {
        match &self.gguf {
            Some(gguf) if gguf.stays_packed(name, device.is_cpu())? => {
                gguf.stored_bytes(name).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// A digest of what the model computes: the meaning of config.json and every tensor's name, type, shape and bytes. Layout
    /// of files and shards, and config keys that no forward pass reads, do not enter; a head that config.json ties and the
    /// tensors do not counts as not tied. Reads every byte once.
    ///
    /// # Errors
    /// When config.json is no JSON, or a file was changed since it was opened.
    pub fn fingerprint(&self) -> Result<[u8; 32]> {
        match &self.gguf {
            Some(gguf) => fingerprint::of_gguf(gguf),
            None => fingerprint::fingerprint(self),
        }
    }

    /// The directory or file these weights were opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about the tensor `name`, with the file that holds it.
    pub(crate) fn error(&self, name: &str, message: impl Into<String>) -> Error {
        let found = self.find(name);
        let path = found.map_or(self.path.as_path(), |(file, _)| file.path());
        Error::tensor(path, name, message)
    }

    fn find(&self, name: &str) -> Result<(&SourceFile, &TensorInfo)> {
        let found = self.tensors.get(name);
        found
            .map(|(file, info)| (file.as_ref(), info))
            .ok_or_else(|| Error::MissingTensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
            })
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("path", &self.path)
            .field("tensors", &self.tensors.len())
            .finish()
    }
}
