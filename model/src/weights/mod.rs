//! Provides the weights of a model directory, memory-mapped, or of a GGUF file: tensors by name, converted, packed or raw, and
//! their fingerprint.

mod convert;
mod fingerprint;
mod head;
#[cfg(test)]
mod head_tests;
mod header;
mod index;
mod mmap;
#[cfg(test)]
mod tests;

pub(crate) use convert::to_f32;
pub(crate) use head::{EMBEDDING, HEAD};
pub use header::{DIMENSIONS_MAX, HEADER_BYTES_MAX};
pub use index::{INDEX_BYTES_MAX, SHARDS_MAX};

use crate::gguf::is_gguf;
use crate::{Error, Gguf, ModelConfig, PackedMatrix, Result};
use candle_core::{DType, Device, Tensor};
use header::TensorInfo;
use index::WeightFiles;
use memmap2::Mmap;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The tensors of `model.safetensors`, of the shards that `model.safetensors.index.json` names, or of a GGUF file, by their
/// Hugging Face names.
///
/// Files are mapped, not read: pages come in when a tensor is asked for. Of a GGUF file, which is kept in memory as it is
/// stored, tensors are read. Files must not be changed while this lives.
pub struct Weights {
    /// The directory, or the file when opened with [`Weights::open_file`].
    path: PathBuf,
    config: Option<PathBuf>,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
    /// What there is instead of `files` and `tensors`, where `path` is such a file.
    gguf: Option<Box<Gguf>>,
    /// Whether the head is a matrix of its own although config.json ties it to the embedding.
    is_untied: bool,
}

struct WeightFile {
    path: PathBuf,
    map: Mmap,
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
        weights.config = config.exists().then_some(config);
        match index::find(dir)? {
            WeightFiles::Single(path) => weights.add_file(path)?,
            WeightFiles::Sharded { index, shards } => {
                for (shard, names) in shards {
                    weights.add_shard(&index, shard, names)?;
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
        weights.add_file(path.to_owned())?;
        Ok(weights)
    }

    fn none(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            config: None,
            files: Vec::new(),
            tensors: BTreeMap::new(),
            gguf: None,
            is_untied: false,
        }
    }

    /// The GGUF file, where it is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_deref()
    }

    /// The shape of the model that these are the weights of: from `config.json`, or from the GGUF file.
    ///
    /// # Errors
    /// As [`ModelConfig::load_teacher`].
    pub fn model_config(&self) -> Result<ModelConfig> {
        match &self.gguf {
            Some(gguf) => Ok(gguf.config().clone()),
            None => ModelConfig::load_teacher(&self.path),
        }
    }

    fn add_file(&mut self, path: PathBuf) -> Result<()> {
        let map = mmap::map_file(&path)?;
        let tensors = header::read_header(&path, &map)?;
        let file = self.files.len();
        let located = tensors.into_iter().map(|(name, info)| (name, (file, info)));
        self.tensors.extend(located);
        self.files.push(WeightFile { path, map });
        Ok(())
    }

    /// Takes the tensors that the index promises from `path`, and only those.
    fn add_shard(&mut self, index: &Path, path: PathBuf, names: Vec<String>) -> Result<()> {
        let map = mmap::map_file(&path)?;
        let mut available = header::read_header(&path, &map)?;
        let file = self.files.len();
        for name in names {
            let info = available.remove(&name).ok_or_else(|| {
                let message = format!(
                    "promises tensor `{name}` in {}, which does not hold it; download both again",
                    path.display()
                );
                Error::malformed(index, "weight_map", message)
            })?;
            self.tensors.insert(name, (file, info));
        }
        self.files.push(WeightFile { path, map });
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

    /// The stored type, shape and little-endian bytes, which need not be aligned to the element.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Unsupported`] for what a GGUF file holds.
    pub fn raw(&self, name: &str) -> Result<(Dtype, &[usize], &[u8])> {
        if self.gguf.is_some() {
            return Err(Error::Unsupported {
                what: format!(
                    "quantising `{name}` of {} while it is loaded",
                    self.path.display()
                ),
                remedy: "convert the file with `student-trainer quantize` first".into(),
            });
        }
        let (file, info) = self.find(name)?;
        let bytes = file.map.get(info.bytes.clone()).ok_or_else(|| {
            Error::tensor(&file.path, name, "lies outside its file; the file changed")
        })?;
        Ok((info.dtype, &info.shape, bytes))
    }

    /// The tensor as `dtype` (f32, f64, bf16 or f16) on `device`, converted from any of these with round-to-nearest.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or [`Error::Tensor`] when the stored type or `dtype` is not a plain float.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        if let Some(gguf) = &self.gguf {
            let values = gguf.tensor(name)?;
            return Ok(values.to_dtype(dtype)?.to_device(device)?);
        }
        let (source, shape, bytes) = self.raw(name)?;
        convert::to_tensor(source, bytes, shape, dtype, device)
            .ok_or_else(|| {
                let hint = if convert::is_float(source) {
                    "use f32, f64, bf16 or f16"
                } else {
                    "a quantised tensor must be read together with its quantisation state"
                };
                self.error(
                    name,
                    format!("cannot be read from {source} as {dtype:?}: {hint}"),
                )
            })?
            .map_err(Error::from)
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
    /// When config.json cannot be read.
    pub fn fingerprint(&self) -> Result<[u8; 32]> {
        match &self.gguf {
            Some(gguf) => fingerprint::of_gguf(gguf),
            None => fingerprint::fingerprint(self, self.config.as_deref()),
        }
    }

    /// The directory or file these weights were opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about the tensor `name`, with the file that holds it.
    pub(crate) fn error(&self, name: &str, message: impl Into<String>) -> Error {
        let path = self.find(name).map_or(&self.path, |(file, _)| &file.path);
        Error::tensor(path, name, message)
    }

    fn find(&self, name: &str) -> Result<(&WeightFile, &TensorInfo)> {
        self.tensors
            .get(name)
            .and_then(|(file, info)| Some((self.files.get(*file)?, info)))
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
            .field("files", &self.files.len())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

/// Reads a whole file of at most `bytes_max` bytes.
fn read_capped(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > bytes_max {
        return Err(Error::malformed(
            path,
            "file",
            format!("is longer than the limit of {bytes_max} bytes"),
        ));
    }
    Ok(bytes)
}
