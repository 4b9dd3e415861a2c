//! Provides a file of weights that is read by position and stays what it was when it was opened, or is refused.
//!
//! A fingerprint is taken of a file, and later its tensors are read, in swap mode again and again. In between somebody may
//! write into the file. It is not mapped: then values would change under a computation, and a file cut short would end the
//! process with SIGBUS. What is read is copied, and after every read the open file's size and times are looked at. A file
//! that another takes the place of under the same name stays open here and is read on.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rayon::prelude::*;

use crate::{Error, Result};

/// Tensors are read and hashed in pieces of this size on all cores.
pub(super) const SEGMENT_BYTES: usize = 4 << 20;
/// Two writes within this time may leave a file with the same times: Linux stamps them by its timer, 10 ms at the most.
const TIMES_GRAIN: Duration = Duration::from_millis(20);
/// Times that a file which is being written is waited for.
const SETTLING_TRIES: usize = 3;

/// blake3 of every [`SEGMENT_BYTES`] of a tensor.
pub(super) type Digests = Vec<[u8; 32]>;

/// What shows that a file was written to. The time of the last change of its inode cannot be set by who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// How long until another write would leave another stamp.
    fn unsettled(&self) -> Option<Duration> {
        let (seconds, nanos) = self.changed;
        let since_epoch = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
        let age = SystemTime::now().duration_since(UNIX_EPOCH + since_epoch);
        // A clock ahead of this one is another machine's: nothing to wait for.
        TIMES_GRAIN.checked_sub(age.ok()?)
    }
}

/// An open file of tensors.
#[derive(Debug)]
pub(crate) struct SourceFile {
    path: PathBuf,
    file: File,
    /// At opening.
    stamp: Stamp,
    /// Whether every write since then has left another stamp.
    settled: bool,
    /// Of the tensors that were fingerprinted.
    digests: RwLock<BTreeMap<String, Digests>>,
}

impl SourceFile {
    /// Opens `path`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`] for what is no regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = distill_program::files::open(path).map_err(|e| Error::io(path, e.reason))?;
        let stamp = Stamp::of(&file.metadata().map_err(|e| Error::io(path, e))?);
        Ok(Self {
            path: path.to_owned(),
            file,
            settled: stamp.unsettled().is_none(),
            stamp,
            digests: RwLock::default(),
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For whoever reads its beginning as a stream.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its length at opening.
    pub fn bytes(&self) -> u64 {
        self.stamp.bytes
    }

    /// Fills `out` from `offset` on. Whether the file is still the same is for [`Self::unchanged`] to say.
    ///
    /// # Errors
    /// [`Error::Changed`] where it ends before that, [`Error::Io`].
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, offset).map_err(|e| {
            if e.kind() == ErrorKind::UnexpectedEof {
                return self.changed(format!(
                    "it had {} bytes and ends before byte {} now",
                    self.stamp.bytes,
                    offset + out.len() as u64
                ));
            }
            Error::io(&self.path, e)
        })
    }

    /// The length of `range`.
    ///
    /// # Errors
    /// [`Error::Malformed`] where no memory has so much room.
    pub fn length(&self, range: &Range<u64>) -> Result<usize> {
        let bytes = range.end - range.start;
        usize::try_from(bytes).map_err(|_| {
            let message = format!("a tensor of {bytes} bytes is larger than this machine's memory");
            Error::malformed(&self.path, "data", message)
        })
    }

    /// The bytes of `range`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_range(&self, range: &Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.length(range)?];
        let segments = bytes.par_chunks_mut(SEGMENT_BYTES).enumerate();
        segments.try_for_each(|(index, segment)| {
            self.read(range.start + (index * SEGMENT_BYTES) as u64, segment)
        })?;
        Ok(bytes)
    }

    /// What `read` gives of the tensor `name`, which lies in `range`, provided that the file is as it was opened, or that
    /// the tensor's bytes are those that were fingerprinted.
    ///
    /// # Errors
    /// [`Error::Changed`]; what `read` says.
    pub fn unchanged<T>(
        &self,
        name: &str,
        range: &Range<u64>,
        read: impl Fn() -> Result<T>,
    ) -> Result<T> {
        let value = read();
        let now = self.stamp_now()?;
        let Some(known) = self.fingerprinted(name) else {
            // Nothing was said of its content yet. A file that was linked or removed meanwhile still has it.
            if (now.bytes, now.modified) == (self.stamp.bytes, self.stamp.modified) {
                return value;
            }
            return Err(self.changed("its size or the time of its last writing is another".into()));
        };
        if now == self.stamp && self.settled {
            return value;
        }
        // A link, other rights or a copy over itself change the times and not the content.
        let before = self.settled_stamp()?;
        let value = read()?;
        let same = self.hash(range)? == known && self.stamp_now()? == before;
        if same {
            return Ok(value);
        }
        Err(self.changed(format!("tensor `{name}` holds other bytes now")))
    }

    /// The digests of the tensor `name`, which lies in `range`; they are kept, and it is compared with them from now on.
    ///
    /// # Errors
    /// As [`Self::unchanged`].
    pub fn fingerprint(&self, name: &str, range: &Range<u64>) -> Result<Digests> {
        let digests = self.unchanged(name, range, || self.hash(range))?;
        let mut all = self.digests.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_owned(), digests.clone());
        Ok(digests)
    }

    fn fingerprinted(&self, name: &str) -> Option<Digests> {
        let all = self.digests.read().unwrap_or_else(PoisonError::into_inner);
        all.get(name).cloned()
    }

    fn hash(&self, range: &Range<u64>) -> Result<Digests> {
        let length = self.length(range)?;
        let segments = (0..length.div_ceil(SEGMENT_BYTES)).into_par_iter();
        segments
            .map_init(Vec::new, |buffer, index| {
                let start = index * SEGMENT_BYTES;
                buffer.resize((length - start).min(SEGMENT_BYTES), 0);
                self.read(range.start + start as u64, buffer)?;
                Ok(*blake3::hash(buffer).as_bytes())
            })
            .collect()
    }

    fn stamp_now(&self) -> Result<Stamp> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|e| Error::io(&self.path, e))?;
        Ok(Stamp::of(&metadata))
    }

    /// The stamp, once another write would leave another one.
    fn settled_stamp(&self) -> Result<Stamp> {
        let mut stamp = self.stamp_now()?;
        for _ in 0..SETTLING_TRIES {
            let Some(wait) = stamp.unsettled() else { break };
            std::thread::sleep(wait);
            stamp = self.stamp_now()?;
        }
        Ok(stamp)
    }

    fn changed(&self, how: String) -> Error {
        Error::Changed {
            path: self.path.clone(),
            how,
        }
    }
}
