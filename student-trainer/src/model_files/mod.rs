/*! Model directories: one that is read, and one that is written tensor by tensor and appears whole or not at all.

```text
 DIR | X.gguf ──> Source: config.json, tensors by Hugging Face names ──> what a command makes of each ──> Staging: shards ──> DIR
```

A tensor is read, converted and written before the next one, so that a model larger than memory passes through.
*/

mod dense;
#[cfg(test)]
mod head_tests;
mod shards;
mod source;
mod staging;

use std::path::Path;

use distill_model::StoredTensor;

use crate::{Error, Result, run::progress, shutdown::Shutdown};
pub use dense::FloatType;
pub(crate) use source::Source;
pub(crate) use staging::Staging;

/// Bytes of tensors in a shard before the next one is begun, where nothing else is asked for.
pub(crate) const SHARD_BYTES: u64 = 1 << 30;

/// Writes what `make` gives for each of `items`, in shards of at most `shard_bytes`; the bytes of all tensors.
///
/// # Errors
/// Those of `make`, a file system that refuses, or a request to stop.
pub(crate) fn write_tensors<T>(
    directory: &Path,
    shard_bytes: u64,
    items: &[T],
    name: impl Fn(&T) -> &str,
    shutdown: &Shutdown,
    mut make: impl FnMut(&T) -> Result<Vec<StoredTensor>>,
) -> Result<u64> {
    let mut writer = shards::ShardWriter::new(directory, shard_bytes)?;
    let mut progress = progress(items.len(), "tensor");
    for item in items {
        for tensor in make(item)? {
            writer.push(tensor)?;
        }
        progress.advance(|| name(item).to_owned());
        refuse_stopped(shutdown)?;
    }
    progress.finish();
    writer.finish()
}

/// # Errors
/// A request to stop.
pub(crate) fn refuse_stopped(shutdown: &Shutdown) -> Result<()> {
    if shutdown.is_requested() {
        return Err(Error::Stopped(
            "before the model was whole; nothing was written",
        ));
    }
    Ok(())
}
