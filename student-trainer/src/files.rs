//! Provides the small files of runs and models, read and written whole: JSON, TOML, safetensors.

use std::{
    borrow::Borrow,
    collections::HashMap,
    io::{self, ErrorKind, Read, Write},
    path::Path,
};

use candle_core::{Device, Tensor};
pub(crate) use distill_program::files::*;
use distill_program::output;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// Writes a file that is either the old or the new version after a crash, never a mix: [`output::write`].
///
/// # Errors
/// The path and what the system said; the old file is untouched then.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(output::write(path, bytes)?)
}

/// Reads a JSON file of at most so many bytes.
///
/// # Errors
/// A file that cannot be read, or holds something else.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, bytes_max: u64) -> Result<T> {
    serde_json::from_slice(&read(path, bytes_max)?).map_err(|e| Error::file(path, e))
}

/// As [`read_json`]; `None` where there is no file.
///
/// # Errors
/// As [`read_json`].
pub(crate) fn read_json_if_there<T: DeserializeOwned>(
    path: &Path,
    bytes_max: u64,
) -> Result<Option<T>> {
    match read_json(path, bytes_max) {
        Err(Error::Io(error)) if error.is_missing() => Ok(None),
        found => found.map(Some),
    }
}

/// Writes JSON for people, as [`write_atomically`].
///
/// # Errors
/// As [`write_atomically`].
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|e| Error::file(path, e))?;
    write_atomically(path, (text + "\n").as_bytes())
}

/// Reads a TOML file of at most so many bytes.
///
/// # Errors
/// A file that cannot be read, or holds something else.
pub(crate) fn read_toml<T: DeserializeOwned>(path: &Path, bytes_max: u64) -> Result<T> {
    toml::from_str(&read_text(path, bytes_max)?).map_err(|e| Error::file(path, e))
}

/// What safetensors files say of themselves, as PEFT and transformers write it; some readers insist on it.
pub(crate) fn tensors_metadata() -> Option<HashMap<String, String>> {
    Some(HashMap::from([("format".to_owned(), "pt".to_owned())]))
}

/// Tensors with their names, on the host, from where they can be written.
///
/// # Errors
/// A tensor error.
pub(crate) fn on_host<N>(
    tensors: impl IntoIterator<Item = (N, impl Borrow<Tensor>)>,
) -> candle_core::Result<Vec<(N, Tensor)>> {
    let tensors = tensors.into_iter();
    tensors
        .map(|(name, tensor)| Ok((name, tensor.borrow().to_device(&Device::Cpu)?)))
        .collect()
}

/// Writes tensors as safetensors, as [`write_atomically`].
///
/// # Errors
/// A tensor error; as [`write_atomically`].
pub(crate) fn write_tensors<N: AsRef<str> + Ord + std::fmt::Display>(
    path: &Path,
    tensors: impl IntoIterator<Item = (N, impl Borrow<Tensor>)>,
) -> Result<()> {
    let bytes = safetensors::serialize(on_host(tensors)?, tensors_metadata())?;
    write_atomically(path, &bytes)
}

/// Writes one of several pieces of a file, its length before it.
///
/// # Errors
/// What the system says.
pub(crate) fn write_piece(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(&(bytes.len() as u64).to_le_bytes())?;
    out.write_all(bytes)
}

/// Reads the next of them; `None` at the end.
///
/// # Errors
/// What the system says, or that a piece is cut short.
pub(crate) fn read_piece(from: &mut dyn Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = Vec::new();
    from.take(8).read_to_end(&mut length)?;
    if length.is_empty() {
        return Ok(None);
    }
    let length = <[u8; 8]>::try_from(length).map(u64::from_le_bytes);
    let length = length.map_err(|_| io::Error::from(ErrorKind::UnexpectedEof))?;
    let mut bytes = Vec::new();
    let read = from.take(length).read_to_end(&mut bytes)?;
    if read as u64 != length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(bytes))
}
