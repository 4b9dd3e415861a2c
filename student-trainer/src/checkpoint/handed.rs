//! Provides what one process of a run hands to the next: what a checkpoint holds, in one file that need not outlive them.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use safetensors::{SafeTensorError, SafeTensors};

use super::{Content, RunState, Saved};
use crate::{Error, Result, files};

/// Between the name of a checkpoint's file and that of a tensor in it.
const SEPARATOR: char = '/';
/// The entry of the file's metadata with the text of `state.toml`.
const STATE: &str = "state";
/// And the one with what was said that is said once a run.
const SAID: &str = "said";

/// A run on its way from one process to the next.
#[derive(Debug)]
pub(crate) struct Handed {
    state: RunState,
    /// As it was given.
    pub said: String,
    tensors: BTreeMap<String, BTreeMap<String, Tensor>>,
}

/// Bytes that the tensors of `files` take.
pub(crate) fn tensor_bytes(files: &[(&str, Content)]) -> u64 {
    let tensors = files.iter().filter_map(|(_, content)| match content {
        Content::Tensors(tensors) => Some(tensors.values()),
        _ => None,
    });
    let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
    tensors.flatten().map(|tensor| bytes(tensor) as u64).sum()
}

impl Handed {
    /// Writes the state and the tensors of `files`; what else a checkpoint holds follows from the run's settings.
    ///
    /// # Errors
    /// A tensor error; the file system refuses.
    pub fn write(
        path: &Path,
        state: &RunState,
        said: String,
        files: &[(&str, Content)],
    ) -> Result<()> {
        let mut tensors = Vec::new();
        for (name, content) in files {
            if let Content::Tensors(content) = content {
                let named = content
                    .iter()
                    .map(|(tensor, value)| (format!("{name}{SEPARATOR}{tensor}"), value));
                tensors.extend(files::on_host(named)?);
            }
        }
        let text = state.to_text().map_err(|e| Error::file(path, e))?;
        let metadata = HashMap::from([(STATE.to_owned(), text), (SAID.to_owned(), said)]);
        safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|e| match e {
            SafeTensorError::IoError(reason) => Error::io("write", path)(reason),
            other => other.into(),
        })
    }

    /// Takes what is in the file, which is empty then; `None` where nothing is.
    ///
    /// # Errors
    /// The file system refuses; something else is there.
    pub fn take(path: &Path) -> Result<Option<Self>> {
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        File::create(path).map_err(Error::io("empty", path))?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        let text = |name: &str| metadata.get(name).cloned().unwrap_or_default();
        let state = RunState::from_text(&text(STATE)).map_err(|e| Error::file(path, e))?;
        let mut tensors = BTreeMap::<_, BTreeMap<_, _>>::new();
        for (name, tensor) in candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)? {
            let (file, name) = name.split_once(SEPARATOR).unwrap_or_default();
            let file = tensors.entry(file.to_owned()).or_default();
            file.insert(name.to_owned(), tensor);
        }
        Ok(Some(Self {
            state: state.0,
            said: text(SAID),
            tensors,
        }))
    }
}

impl Saved for Handed {
    fn state(&self) -> &RunState {
        &self.state
    }

    fn tensors(&self, name: &str) -> Result<BTreeMap<String, Tensor>> {
        let tensors = self.tensors.get(name).cloned();
        tensors.ok_or_else(|| Error::file(&self.path(name), "was not handed over"))
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new("the process before").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Identity;

    #[test]
    fn what_is_handed_over_is_the_same_to_the_bit_and_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handed");
        fs::write(&path, b"").unwrap();
        assert!(Handed::take(&path).unwrap().is_none());
        let mut state = RunState::start(9, Identity::default());
        state.step = 3;
        let values = [0.1_f32, -0.0, f32::MIN_POSITIVE / 2.0];
        let tensor = Tensor::new(&values, &Device::Cpu).unwrap();
        // A name with the separator in it stays whole.
        let name = "model.layers.0/q";
        let tensors = BTreeMap::from([(name.to_owned(), tensor)]);
        let files = [
            ("adapter_model.safetensors", Content::Tensors(tensors)),
            ("adapter_config.json", Content::Bytes(b"{}".to_vec())),
        ];
        assert_eq!(tensor_bytes(&files), 12);
        Handed::write(&path, &state, "much".into(), &files).unwrap();
        let handed = Handed::take(&path).unwrap().unwrap();
        assert_eq!((handed.state(), &*handed.said), (&state, "much"));
        let tensors = handed.tensors("adapter_model.safetensors").unwrap();
        let taken = tensors[name].to_vec1::<f32>().unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&taken), bits(&values));
        assert!(handed.tensors("adapter_config.json").is_err());
        assert!(Handed::take(&path).unwrap().is_none());
    }
}
