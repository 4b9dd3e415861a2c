//! Provides the list of weight files of a model directory: one `model.safetensors`, or the shards its index names.

use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Longest `model.safetensors.index.json` accepted, in bytes.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Most shards a model may have.
pub const SHARDS_MAX: usize = 1024;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// The weight files of a model, as found on disk.
pub(super) enum WeightFiles {
    /// Everything is in one file.
    Single(PathBuf),
    /// Shards, with the names of the tensors to be taken from each.
    Sharded {
        index: PathBuf,
        shards: BTreeMap<PathBuf, Vec<String>>,
    },
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Finds the weight files in `dir`; like transformers, a single file wins over an index.
///
/// # Errors
/// [`Error::Io`] when there is nothing to read, [`Error::Malformed`] when the index is unusable.
pub(super) fn find(dir: &Path) -> Result<WeightFiles> {
    std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    let single = dir.join(SINGLE_FILE);
    if single.exists() {
        return Ok(WeightFiles::Single(single));
    }
    let index = dir.join(INDEX_FILE);
    if !index.exists() {
        return Err(Error::malformed(
            dir,
            "weights",
            format!(
                "holds neither {SINGLE_FILE} nor {INDEX_FILE}; other formats must be converted to safetensors first"
            ),
        ));
    }
    let shards = read_index(dir, &index)?;
    Ok(WeightFiles::Sharded { index, shards })
}

fn read_index(dir: &Path, path: &Path) -> Result<BTreeMap<PathBuf, Vec<String>>> {
    let bytes = distill_program::files::read(path, INDEX_BYTES_MAX)
        .map_err(|e| Error::io(path, e.reason))?;
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|e| Error::malformed(path, "weight_map", e.to_string()))?;
    let mut shards = BTreeMap::<PathBuf, Vec<String>>::new();
    for (tensor, file) in index.weight_map {
        if !is_plain_file_name(&file) {
            return Err(Error::malformed(
                path,
                "weight_map",
                format!(
                    "tensor `{tensor}` is said to be in {file:?}, which is no plain file name; only files in the same directory are read"
                ),
            ));
        }
        shards.entry(dir.join(file)).or_default().push(tensor);
    }
    if shards.is_empty() || shards.len() > SHARDS_MAX {
        return Err(Error::malformed(
            path,
            "weight_map",
            format!("names {} files, outside 1..={SHARDS_MAX}", shards.len()),
        ));
    }
    Ok(shards)
}

/// One normal path component and no NUL, whatever the platform's separator is. Links are followed: the Hugging Face cache
/// consists of them.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    !name.contains(['/', '\\', '\0'])
        && matches!(components.next(), Some(Component::Normal(_)))
        && components.next().is_none()
}
