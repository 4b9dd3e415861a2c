//! Provides the writing of a checkpoint in shards, so that only one of them is in memory.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use distill_model::StoredTensor;
use safetensors::tensor::TensorView;

use crate::{Error, Result, run::write_atomically};

/// Bytes of tensors in a shard before the next one is begun.
const SHARD_BYTES: u64 = 1 << 30;

/// Collects tensors and writes them as `model.safetensors`, or as shards with an index.
pub(super) struct ShardWriter<'a> {
    directory: &'a Path,
    pending: Vec<StoredTensor>,
    pending_bytes: u64,
    written: Vec<(PathBuf, Vec<String>)>,
    bytes: u64,
}

impl<'a> ShardWriter<'a> {
    pub fn new(directory: &'a Path) -> Self {
        Self {
            directory,
            pending: Vec::new(),
            pending_bytes: 0,
            written: Vec::new(),
            bytes: 0,
        }
    }

    /// Adds a tensor.
    pub fn push(&mut self, tensor: StoredTensor) -> Result<()> {
        let bytes = tensor.bytes.len() as u64;
        if self.pending_bytes > 0 && self.pending_bytes + bytes > SHARD_BYTES {
            self.flush()?;
        }
        self.pending_bytes += bytes;
        self.bytes += bytes;
        self.pending.push(tensor);
        Ok(())
    }

    /// Writes what is left and gives the shards their names; the bytes of all tensors.
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        let count = self.written.len();
        let mut weight_map = BTreeMap::new();
        for (i, (path, names)) in self.written.iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
            };
            let to = self.directory.join(&name);
            fs::rename(path, &to).map_err(Error::io("rename to", &to))?;
            weight_map.extend(names.iter().map(|tensor| (tensor.clone(), name.clone())));
        }
        if count > 1 {
            let index = serde_json::json!({
                "metadata": {"total_size": self.bytes},
                "weight_map": weight_map,
            });
            let path = self.directory.join("model.safetensors.index.json");
            write_atomically(&path, format!("{index:#}\n").as_bytes())?;
        }
        Ok(self.bytes)
    }

    fn flush(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let views = pending
            .iter()
            .map(|t| {
                Ok((
                    &t.name,
                    TensorView::new(t.dtype, t.shape.clone(), &t.bytes)?,
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let path = self.directory.join(format!("shard-{}", self.written.len()));
        safetensors::serialize_to_file(views, Some(metadata), &path)?;
        let names = pending.into_iter().map(|t| t.name).collect();
        self.written.push((path, names));
        Ok(())
    }
}
