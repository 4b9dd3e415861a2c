//! Provides the spool: one unnamed temporary file that lives as long as the server.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
};

use distill_proto::limits::FRAME_BYTES_MAX;

use super::{BlockStore, StoredBlock};
use crate::{Error, Result};

/// Where a frame lies in the file.
#[derive(Debug, Clone, Copy)]
struct Extent {
    offset: u64,
    bytes: usize,
}

/// Frames in a temporary file without a name: it vanishes with the process, however that ends.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    file: File,
    extents: RwLock<Vec<Option<Extent>>>,
    /// End of the last frame written whole; a frame that failed half-way is overwritten by the next one.
    end: Mutex<u64>,
}

impl Spool {
    /// Makes a spool for `count` frames in `directory`, or in the system's temporary directory.
    ///
    /// # Errors
    /// `Io` naming the directory.
    pub fn create(directory: Option<&Path>, count: u64) -> Result<Self> {
        let directory = directory.map_or_else(std::env::temp_dir, Path::to_owned);
        let file = tempfile::tempfile_in(&directory)
            .map_err(Error::spool("create a spool file in", &directory))?;
        Ok(Self::over(file, directory, count))
    }

    fn over(file: File, directory: PathBuf, count: u64) -> Self {
        Self {
            directory,
            file,
            extents: RwLock::new(vec![None; count as usize]),
            end: Mutex::new(0),
        }
    }

    fn extent(&self, index: u64) -> Option<Extent> {
        let extents = self.extents.read().unwrap_or_else(PoisonError::into_inner);
        extents.get(index as usize).copied().flatten()
    }
}

impl BlockStore for Spool {
    fn contains(&self, index: u64) -> bool {
        self.extent(index).is_some()
    }

    fn get(&self, index: u64) -> Result<Option<StoredBlock>> {
        let Some(extent) = self.extent(index) else {
            return Ok(None);
        };
        let mut frame = vec![0; extent.bytes];
        self.file
            .read_exact_at(&mut frame, extent.offset)
            .map_err(Error::spool("read the spool file in", &self.directory))?;
        Ok(Some(StoredBlock {
            shard: self.shard_of(index),
            index,
            frame: frame.into(),
        }))
    }

    fn shard_of(&self, _index: u64) -> u32 {
        0
    }

    fn put(&self, index: u64, frame: &[u8]) -> Result<()> {
        let known = self
            .extents
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len();
        if index as usize >= known || frame.len() > FRAME_BYTES_MAX {
            return Err(Error::Internal(format!(
                "frame {index} of {} bytes does not belong in a spool of {known}",
                frame.len()
            )));
        }
        if self.contains(index) {
            return Ok(());
        }
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        self.file
            .write_all_at(frame, *end)
            .map_err(Error::spool("write the spool file in", &self.directory))?;
        let extent = Extent {
            offset: *end,
            bytes: frame.len(),
        };
        *end += frame.len() as u64;
        let mut extents = self.extents.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = extents.get_mut(index as usize) {
            *slot = Some(extent);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_in_any_order_and_the_first_one_stays() {
        let spool = Spool::create(None, 3).unwrap();
        spool.put(2, b"last").unwrap();
        spool.put(0, b"").unwrap();
        spool.put(2, b"other").unwrap();
        assert_eq!(&spool.get(2).unwrap().unwrap().frame[..], b"last");
        assert_eq!(&spool.get(0).unwrap().unwrap().frame[..], b"");
        assert_eq!(spool.get(1).unwrap(), None);
        assert!(spool.contains(2) && !spool.contains(1) && !spool.contains(u64::MAX));
        assert!(spool.put(3, b"beyond").is_err());
    }

    #[test]
    fn a_failed_write_names_the_place_and_keeps_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, b"").unwrap();
        // Opened for reading only: every write fails, as on a full disk.
        let file = File::open(&path).unwrap();
        let spool = Spool::over(file, path.clone(), 1);
        let error = spool.put(0, b"frame").unwrap_err();
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        assert!(error.is_transient() && !spool.contains(0));
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = Spool::create(Some(Path::new("/no/such/place")), 1).unwrap_err();
        assert!(error.to_string().contains("/no/such/place"), "{error}");
    }
}
