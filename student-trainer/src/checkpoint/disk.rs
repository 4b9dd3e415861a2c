//! Provides the file operations behind a checkpoint, one by one, so that tests can let each of them fail.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use distill_program::output::readable_by_all;

use crate::{Error, Result, files};

/// What a file will hold.
pub(crate) enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Tensors as safetensors, written one after the other: a second copy of them would not fit everywhere.
    Tensors(BTreeMap<String, Tensor>),
    /// The bytes of another file.
    Copy(PathBuf),
}

/// What a checkpoint asks of the file system. Nothing is on the disk before `sync` of the file, no name before `sync` of
/// its directory, and `rename` is all or nothing.
pub(crate) trait Disk {
    fn create_dir(&self, path: &Path) -> Result<()>;
    fn write(&self, path: &Path, content: &Content) -> Result<()>;
    fn sync(&self, path: &Path) -> Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    fn symlink(&self, target: &Path, link: &Path) -> Result<()>;
    fn remove_file(&self, path: &Path) -> Result<()>;
    fn remove_dir(&self, path: &Path) -> Result<()>;
}

/// The file system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> Result<()> {
        fs::create_dir(path).map_err(Error::io("create", path))
    }

    fn write(&self, path: &Path, content: &Content) -> Result<()> {
        write(path, content).map_err(Error::io("write", path))
    }

    fn sync(&self, path: &Path) -> Result<()> {
        Ok(files::sync(path)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(Error::io("rename to", to))
    }

    fn symlink(&self, target: &Path, link: &Path) -> Result<()> {
        symlink(target, link).map_err(Error::io("create", link))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(Error::io("remove", path))
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        fs::remove_dir_all(path).map_err(Error::io("remove", path))
    }
}

fn write(path: &Path, content: &Content) -> io::Result<()> {
    match content {
        Content::Bytes(bytes) => {
            let mut file = File::create(path)?;
            readable_by_all(&file)?;
            file.write_all(bytes)
        }
        Content::Tensors(tensors) => {
            let on_host = files::on_host(tensors).map_err(io::Error::other)?;
            let written = safetensors::serialize_to_file(on_host, files::tensors_metadata(), path);
            written.map_err(|e| match e {
                safetensors::SafeTensorError::IoError(error) => error,
                other => io::Error::other(other),
            })?;
            readable_by_all(&File::open(path)?)
        }
        Content::Copy(from) => fs::copy(from, path).map(drop),
    }
}
