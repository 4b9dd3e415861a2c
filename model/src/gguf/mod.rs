/*! Provides a GGUF file as a Hugging Face checkpoint: config, tensors by their Hugging Face names, one at a time. And the way back.

```text
 header ──> metadata ──> config.json (config) <── rope_freqs.weight (rope)
 blk.0.attn_q.weight ──> model.layers.0.self_attn.q_proj.weight (names) ──> rows in Hugging Face's order (tensors)
                                                                              ├──> PackedMatrix, in the file's blocks
                                                                              └──> dequantised
 tokenizer.ggml.* ──> GgufTokenizer, for whoever builds tokenizer.json

 ModelConfig, GgufTokenizer, tensors one at a time ──> GgufFile (write) ──> file
```

The format is that of ggml (github.com/ggml-org/ggml, docs/gguf.md); candle has the arithmetic of the blocks.
*/
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

mod blocks;
mod config;
#[cfg(test)]
mod decoder_tests;
mod header;
mod mixture;
mod names;
mod pre_tokenizer;
#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod refusal_tests;
mod rope;
mod rows;
mod tensors;
#[cfg(test)]
mod tests;
mod tokenizer;
mod value;
mod vocabulary;
mod window;
mod write;
#[cfg(test)]
mod write_tests;

use std::{
    collections::{BTreeMap, HashSet},
    io::BufReader,
    path::{Path, PathBuf},
};

use crate::{Architecture, Error, ModelConfig, Result, weights::SourceFile};
use config::READ;
use header::Header;
pub use mixture::GgufQuant;
use tensors::StoredTensor;
#[cfg(test)]
pub(crate) use tests::{model as test_model, write_gguf as test_file};
pub use tokenizer::GgufTokenizer;
use value::Value;
pub use write::GgufFile;

/// Whether `path` names a GGUF file, by its ending.
pub fn is_gguf(path: &Path) -> bool {
    let extension = path.extension();
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Whether this is the model of a `llama` file, be it Llama's or, with a window, Mistral's.
fn is_llama(config: &ModelConfig) -> bool {
    matches!(
        config.model_type,
        Architecture::Llama | Architecture::Mistral
    )
}

/// An open GGUF file.
pub struct Gguf {
    path: PathBuf,
    file: SourceFile,
    header: Header,
    /// By Hugging Face name.
    tensors: BTreeMap<String, StoredTensor>,
    config_json: serde_json::Value,
    config: ModelConfig,
}

impl Gguf {
    /// Reads the header and checks that it describes a model of this decoder's shape.
    ///
    /// # Errors
    /// A file that is no GGUF, or truncated; an architecture, or a setting, that the decoder does not have.
    pub fn open(path: &Path) -> Result<Self> {
        let file = SourceFile::open(path)?;
        let file_bytes = file.bytes();
        let header = Header::read(BufReader::new(file.file()), path)?;
        refuse_adapter(&header, path)?;
        refuse_split(&header, path)?;
        let mut config_json = config::config_json(&header, path)?;
        let parse =
            |json: &serde_json::Value| ModelConfig::parse(json.to_string().as_bytes(), path);
        let mut config = parse(&config_json)?;
        let rope_factors = rope::find(&header, path, file_bytes, &config)?;
        if let Some(stored) = &rope_factors {
            config_json["rope_scaling"] = rope::scaling(stored, &file, path, &config)?;
            config = parse(&config_json)?;
        }
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.parameter_shapes() {
            let stored = StoredTensor::find(&header, path, file_bytes, &name, &shape)?;
            tensors.insert(name, stored);
        }
        let gguf = Self {
            path: path.to_owned(),
            file,
            header,
            tensors,
            config_json,
            config,
        };
        let known = gguf.tensors.values().chain(&rope_factors);
        gguf.refuse_unknown_tensors(known.clone())?;
        StoredTensor::refuse_overlaps(known, path)?;
        Ok(gguf)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What `config.json` of the same model holds, special token ids included.
    pub fn config_json(&self) -> &serde_json::Value {
        &self.config_json
    }

    /// Memory that the open file's metadata takes, the tokenizer's lists above all.
    pub fn metadata_bytes(&self) -> u64 {
        self.header.bytes() as u64
    }

    /// What the file says about its tokenizer.
    ///
    /// # Errors
    /// Names the key that is missing or has another type.
    pub fn tokenizer(&self) -> Result<GgufTokenizer> {
        tokenizer::read(&self.header, &self.path)
    }

    /// The tokenizer as the files that a model directory has, by name.
    ///
    /// # Errors
    /// As [`tokenizer`](Self::tokenizer), and where it is not known how the tokenizer splits text.
    pub fn tokenizer_files(&self) -> Result<Vec<(&'static str, String)>> {
        let tokenizer = self.tokenizer()?;
        let json = tokenizer.tokenizer_json().ok_or_else(|| {
            let problem = format!(
                "is `{}`, and how that splits text is not known here; name a directory with this model's tokenizer.json with \
                 --tokenizer",
                tokenizer.pre_tokenizer
            );
            Error::malformed(&self.path, "tokenizer.ggml.pre", problem)
        })?;
        let config = tokenizer.tokenizer_config_json();
        Ok(vec![
            ("tokenizer.json", json.to_string()),
            ("tokenizer_config.json", format!("{config:#}\n")),
        ])
    }

    /// What the decoder would leave out, be it a bias or an expert, changes what the model computes.
    fn refuse_unknown_tensors<'a>(
        &self,
        known: impl Iterator<Item = &'a StoredTensor>,
    ) -> Result<()> {
        let known: HashSet<&str> = known.map(StoredTensor::name).collect();
        let stored = self.header.tensors.keys();
        match stored.filter(|name| !known.contains(name.as_str())).min() {
            None => Ok(()),
            Some(name) => Err(Error::tensor(
                &self.path,
                name,
                "is no part of this decoder, which would compute something else without it; take a plain Llama or Qwen2 model",
            )),
        }
    }
}

/// A file may also be an adapter of a model.
fn refuse_adapter(header: &Header, path: &Path) -> Result<()> {
    let key = "general.type";
    match header.metadata.get(key).and_then(Value::text) {
        Some("adapter") => Err(Error::malformed(
            path,
            key,
            "is `adapter`: the file has an adapter and no model; name the file of the model that it was trained on",
        )),
        _ => Ok(()),
    }
}

/// A model in several files lacks most of its tensors in each.
fn refuse_split(header: &Header, path: &Path) -> Result<()> {
    let key = "split.count";
    let count = header.metadata.get(key).and_then(Value::unsigned);
    match count {
        Some(count) if count > 1 => Err(Error::malformed(
            path,
            key,
            format!(
                "is {count}: the model is spread over {count} files, which are not read; join them with llama.cpp's `llama-gguf-split --merge FIRST.gguf OUT.gguf`"
            ),
        )),
        _ => Ok(()),
    }
}
