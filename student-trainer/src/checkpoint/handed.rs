//! Provides what one process of a run hands to the next: what a checkpoint holds, in one file that need not outlive them.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};

use super::{Content, RunState, Saved};
use crate::{Error, Result, files};

/// Between the name of a checkpoint's file and that of a tensor in it.
const SEPARATOR: char = '/';

/// A run on its way from one process to the next: pieces of bytes, the text of `state.toml`, what was said that is said once a
/// run, and then every tensor as a safetensors file of its own, so that no second copy of them all is ever there.
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
        said: &str,
        files: &[(&str, Content)],
    ) -> Result<()> {
        let refused = || Error::io("write", path);
        let mut out = BufWriter::new(File::create(path).map_err(refused())?);
        let text = state.to_text().map_err(|e| Error::file(path, e))?;
        for text in [&*text, said] {
            files::write_piece(&mut out, text.as_bytes()).map_err(refused())?;
        }
        for (name, content) in files {
            let Content::Tensors(tensors) = content else {
                continue;
            };
            for (tensor, value) in tensors {
                let named = files::on_host([(format!("{name}{SEPARATOR}{tensor}"), value)])?;
                let bytes = safetensors::serialize(named, None)?;
                files::write_piece(&mut out, &bytes).map_err(refused())?;
            }
        }
        out.flush().map_err(refused())
    }

    /// Takes what is in the file, which is empty then; `None` where nothing is.
    ///
    /// # Errors
    /// The file system refuses; something else is there.
    pub fn take(path: &Path) -> Result<Option<Self>> {
        let refused = || Error::io("read", path);
        let mut file = BufReader::new(File::open(path).map_err(refused())?);
        let mut piece = || files::read_piece(&mut file).map_err(refused());
        let Some(text_bytes) = piece()? else {
            return Ok(None);
        };
        let text = |bytes| String::from_utf8(bytes).map_err(|e| Error::file(path, e));
        let state = RunState::from_text(&text(text_bytes)?).map_err(|e| Error::file(path, e))?;
        let said = text(piece()?.unwrap_or_default())?;
        let mut tensors = BTreeMap::<_, BTreeMap<_, _>>::new();
        while let Some(bytes) = piece()? {
            for (name, tensor) in candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)? {
                let (file, name) = name.split_once(SEPARATOR).unwrap_or_default();
                let file = tensors.entry(file.to_owned()).or_default();
                file.insert(name.to_owned(), tensor);
            }
        }
        File::create(path).map_err(Error::io("empty", path))?;
        Ok(Some(Self {
            state: state.0,
            said,
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
    use std::fs;

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
        Handed::write(&path, &state, "much", &files).unwrap();
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
