//! Provides the writing of a checkpoint in shards with one tensor in memory: tensors wait in a file until their shard is full.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use distill_model::StoredTensor;
use safetensors::{Dtype, View};

use crate::{
    Error, Result,
    files::{tensors_metadata, write_json},
};

/// Collects tensors and writes them as `model.safetensors`, or as shards with an index.
///
/// The file format wants the names of all tensors of a shard first, and the tensors in an order of its own.
pub(super) struct ShardWriter<'a> {
    directory: &'a Path,
    shard_bytes: u64,
    spool_path: PathBuf,
    spool: File,
    pending: Vec<Pending>,
    pending_bytes: u64,
    written: Vec<(PathBuf, Vec<String>)>,
    bytes: u64,
}

/// A tensor whose bytes are in the spool.
struct Pending {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    len: usize,
}

impl<'a> ShardWriter<'a> {
    pub fn new(directory: &'a Path, shard_bytes: u64) -> Result<Self> {
        let spool_path = directory.join("spool");
        let spool = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&spool_path)
            .map_err(Error::io("create", &spool_path))?;
        Ok(Self {
            directory,
            shard_bytes,
            spool_path,
            spool,
            pending: Vec::new(),
            pending_bytes: 0,
            written: Vec::new(),
            bytes: 0,
        })
    }

    /// Adds a tensor.
    pub fn push(&mut self, tensor: StoredTensor) -> Result<()> {
        let len = tensor.bytes.len();
        if self.pending_bytes > 0 && self.pending_bytes + len as u64 > self.shard_bytes {
            self.flush()?;
        }
        self.spool
            .write_all_at(&tensor.bytes, self.pending_bytes)
            .map_err(Error::io("write", &self.spool_path))?;
        self.pending.push(Pending {
            name: tensor.name,
            dtype: tensor.dtype,
            shape: tensor.shape,
            start: self.pending_bytes,
            len,
        });
        self.pending_bytes += len as u64;
        self.bytes += len as u64;
        Ok(())
    }

    /// Writes what is left and gives the shards their names; the bytes of all tensors.
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        fs::remove_file(&self.spool_path).map_err(Error::io("remove", &self.spool_path))?;
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
            write_json(&self.directory.join("model.safetensors.index.json"), &index)?;
        }
        Ok(self.bytes)
    }

    fn flush(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let path = self.directory.join(format!("shard-{}", self.written.len()));
        let failure = RefCell::new(None);
        let views = pending.iter().map(|tensor| {
            let view = Spooled {
                tensor,
                spool: &self.spool,
                failure: &failure,
            };
            (&tensor.name, view)
        });
        safetensors::serialize_to_file(views, tensors_metadata(), &path)?;
        if let Some(error) = failure.into_inner() {
            return Err(Error::io("read", &self.spool_path)(error));
        }
        let names = pending.into_iter().map(|tensor| tensor.name).collect();
        self.written.push((path, names));
        self.spool
            .set_len(0)
            .and_then(|()| self.spool.flush())
            .map_err(Error::io("empty", &self.spool_path))
    }
}

/// A tensor that is read when its turn has come. The trait knows no errors: they are left in `failure`.
struct Spooled<'a> {
    tensor: &'a Pending,
    spool: &'a File,
    failure: &'a RefCell<Option<io::Error>>,
}

impl View for Spooled<'_> {
    fn dtype(&self) -> Dtype {
        self.tensor.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.tensor.len];
        if let Err(error) = self.spool.read_exact_at(&mut bytes, self.tensor.start) {
            self.failure.replace(Some(error));
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.len
    }
}

#[cfg(test)]
mod tests {
    use distill_model::Weights;

    use super::*;

    fn tensor(name: &str, dtype: Dtype, count: usize) -> StoredTensor {
        let size = dtype.bitsize() / 8;
        StoredTensor {
            name: name.to_owned(),
            dtype,
            shape: vec![count],
            bytes: (0..count * size).map(|i| (i + name.len()) as u8).collect(),
        }
    }

    /// Odd byte counts before floats: the format's order, not ours, keeps these aligned.
    fn tensors() -> Vec<StoredTensor> {
        vec![
            tensor("a", Dtype::U8, 7),
            tensor("bb", Dtype::F32, 5),
            tensor("ccc", Dtype::BF16, 3),
            tensor("dddd", Dtype::F32, 40),
            tensor("eeeee", Dtype::U8, 1),
        ]
    }

    #[test]
    fn shards_hold_what_was_pushed_and_no_more_than_they_should() {
        for (shard_bytes, shards) in [(1 << 20, 1), (40, 3), (1, 5)] {
            let dir = tempfile::tempdir().unwrap();
            let mut writer = ShardWriter::new(dir.path(), shard_bytes).unwrap();
            for tensor in tensors() {
                writer.push(tensor).unwrap();
            }
            assert_eq!(writer.finish().unwrap(), 7 + 20 + 6 + 160 + 1);
            let files = fs::read_dir(dir.path()).unwrap().count();
            let index = usize::from(shards > 1);
            assert_eq!(files, shards + index, "{shard_bytes}");
            let weights = Weights::open(dir.path()).unwrap();
            for tensor in tensors() {
                let (dtype, shape, bytes) = weights.raw(&tensor.name).unwrap();
                assert_eq!((dtype, shape), (tensor.dtype, &tensor.shape[..]));
                assert_eq!(bytes, tensor.bytes, "{}", tensor.name);
            }
        }
    }

    #[test]
    fn a_spool_that_cannot_be_read_back_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::new(dir.path(), 1 << 20).unwrap();
        writer.push(tensor("a", Dtype::F32, 8)).unwrap();
        writer.spool.set_len(3).unwrap();
        let message = writer.finish().unwrap_err().to_string();
        assert!(message.contains("spool"), "{message}");
    }
}
