//! Provides the file operations behind a checkpoint, one by one, so that tests can let each of them fail.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};

use crate::run::readable_by_all;

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
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    fn write(&self, path: &Path, content: &Content) -> io::Result<()>;
    fn sync(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}

/// The file system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn write(&self, path: &Path, content: &Content) -> io::Result<()> {
        match content {
            Content::Bytes(bytes) => {
                let mut file = File::create(path)?;
                readable_by_all(&file)?;
                file.write_all(bytes)
            }
            Content::Tensors(tensors) => {
                let on_host = tensors
                    .iter()
                    .map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?)))
                    .collect::<candle_core::Result<Vec<(&String, Tensor)>>>()
                    .map_err(io::Error::other)?;
                // What PEFT and transformers write; some readers insist on it.
                let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
                safetensors::serialize_to_file(on_host, Some(metadata), path).map_err(
                    |e| match e {
                        safetensors::SafeTensorError::IoError(error) => error,
                        other => io::Error::other(other),
                    },
                )?;
                readable_by_all(&File::open(path)?)
            }
            Content::Copy(from) => fs::copy(from, path).map(drop),
        }
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        symlink(target, link)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }
}
