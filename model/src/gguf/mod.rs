/*! Provides a GGUF file as a Hugging Face checkpoint: config, tensors by their Hugging Face names, one at a time.

```text
 metadata ──> config.json (config)
 blk.0.attn_q.weight ──> model.layers.0.self_attn.q_proj.weight (names) ──> dequantised, rows in Hugging Face's order
 tokenizer.ggml.* ──> GgufTokenizer, for whoever builds tokenizer.json
```

The format is that of ggml (github.com/ggml-org/ggml, docs/gguf.md); candle reads it and dequantises.
*/

mod config;
mod names;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::{
    collections::HashSet,
    fs::File,
    io::BufReader,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use candle_core::{DType, Device, Tensor};

use crate::{Architecture, Error, ModelConfig, Result};
pub use tokenizer::GgufTokenizer;

/// Longest part of candle's words in one of ours: it prints a value of the wrong type whole, be it a vocabulary.
const REASON_CHARS_MAX: usize = 200;

/// An open GGUF file.
pub struct Gguf {
    path: PathBuf,
    file: Mutex<BufReader<File>>,
    file_bytes: u64,
    content: Content,
    config_json: serde_json::Value,
    config: ModelConfig,
}

impl Gguf {
    /// Reads the header and checks that it describes a model of this decoder's shape.
    ///
    /// # Errors
    /// A file that is no GGUF, or truncated; an architecture, or a setting, that the decoder does not have.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io(path, source))?;
        let file_bytes = file
            .metadata()
            .map_err(|source| Error::io(path, source))?
            .len();
        let mut file = BufReader::new(file);
        let content = read_header(&mut file, path)?;
        let config_json = config::config_json(&content, path)?;
        let config = ModelConfig::parse(config_json.to_string().as_bytes(), path)?;
        let gguf = Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            file_bytes,
            content,
            config_json,
            config,
        };
        for (name, shape) in gguf.config.parameter_shapes() {
            gguf.check(&name, &shape)?;
        }
        gguf.refuse_unknown_tensors()?;
        Ok(gguf)
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What `config.json` of the same model holds, special token ids included.
    pub fn config_json(&self) -> &serde_json::Value {
        &self.config_json
    }

    /// What the file says about its tokenizer.
    ///
    /// # Errors
    /// Names the key that is missing or has another type.
    pub fn tokenizer(&self) -> Result<GgufTokenizer> {
        tokenizer::read(&self.content, &self.path)
    }

    /// A tensor by its Hugging Face name, dequantised to f32.
    ///
    /// llama.cpp stores the rows of Llama's q and k so that its rotation takes neighbours; they are put back in order here.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; a file that ends early.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let (stored_name, _) = self.find(name)?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let quantised = self
            .content
            .tensor(&mut *file, &stored_name, &Device::Cpu)
            .map_err(|e| Error::tensor(&self.path, &stored_name, first_line(&e)))?;
        drop(file);
        let tensor = quantised.dequantize(&Device::Cpu)?.to_dtype(DType::F32)?;
        if self.config.model_type != Architecture::Llama {
            return Ok(tensor);
        }
        let heads = if name.contains(".q_proj.") {
            self.config.num_attention_heads
        } else if name.contains(".k_proj.") {
            self.config.num_key_value_heads
        } else {
            return Ok(tensor);
        };
        halves_from_pairs(&tensor, heads)
    }

    fn find(&self, name: &str) -> Result<(String, &TensorInfo)> {
        let missing = || Error::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
        };
        let stored = names::stored_name(name).ok_or_else(missing)?;
        let info = self.content.tensor_infos.get(&stored).ok_or_else(missing)?;
        Ok((stored, info))
    }

    /// What the decoder would leave out, be it a bias or the angles of Llama 3.1 (`rope_freqs`), changes what the model computes.
    fn refuse_unknown_tensors(&self) -> Result<()> {
        let parameters = self.config.parameter_shapes();
        let known: HashSet<String> = parameters
            .iter()
            .filter_map(|(name, _)| names::stored_name(name))
            .collect();
        let stored = self.content.tensor_infos.keys();
        match stored.filter(|name| !known.contains(*name)).min() {
            None => Ok(()),
            Some(name) => Err(Error::tensor(
                &self.path,
                name,
                "is no part of this decoder, which would compute something else without it; take a plain Llama or Qwen2 model",
            )),
        }
    }

    /// Shape and place, before anything is allocated for it.
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let (stored, info) = self.find(name)?;
        if info.shape.dims() != shape {
            let what = format!("tensor `{stored}` beside this file's metadata");
            return Err(Error::shape(what, shape, info.shape.dims()));
        }
        let (block, size) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
        let count: usize = shape.iter().product();
        let bytes = (count / block) as u64 * size as u64;
        let end = self
            .content
            .tensor_data_offset
            .checked_add(info.offset)
            .and_then(|start| start.checked_add(bytes));
        match end.filter(|end| *end <= self.file_bytes && count.is_multiple_of(block)) {
            Some(_) => Ok(()),
            None => Err(Error::tensor(
                &self.path,
                &stored,
                format!(
                    "needs {bytes} bytes that are not in the file's {}; it was cut off, download it again",
                    self.file_bytes
                ),
            )),
        }
    }
}

/// Rows (2i, 2i + 1) of every head to rows (i, i + half): the inverse of llama.cpp's permutation.
///
/// # Shapes
/// [heads * head_dim, ..] -> the same
fn halves_from_pairs(tensor: &Tensor, heads: usize) -> Result<Tensor> {
    let dims = tensor.dims().to_vec();
    let rest: usize = dims.iter().skip(1).product();
    let half = dims.first().map_or(0, |rows| rows / heads / 2);
    let pairs = tensor.reshape((heads, half, 2, rest))?;
    Ok(pairs.transpose(1, 2)?.contiguous()?.reshape(dims)?)
}

/// The value of `key`.
fn value<'a>(content: &'a Content, path: &Path, key: &str) -> Result<&'a Value> {
    let missing = || Error::malformed(path, key, "is not in the file's metadata");
    content.metadata.get(key).ok_or_else(missing)
}

/// candle checks every length against the file, but divides by the alignment that the file names.
fn read_header(file: &mut BufReader<File>, path: &Path) -> Result<Content> {
    let fault = |reason: String| Error::malformed(path, "(GGUF header)", reason);
    match catch_unwind(AssertUnwindSafe(|| Content::read(file))) {
        Ok(read) => read.map_err(|e| {
            let reason = first_line(&e);
            fault(format!("{reason}; is it whole, and a GGUF file?"))
        }),
        Err(_) => Err(fault(
            "makes no sense, such as general.alignment = 0; download the file again".into(),
        )),
    }
}

/// candle's errors carry a backtrace in their text.
fn first_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(REASON_CHARS_MAX).collect()
}
