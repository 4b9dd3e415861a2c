//! Provides copies of objects on this machine's disk, block by block, up to a limit; the least recently used go first.

use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    io::Write,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use distill_program::{FileError, files};
use metrics::counter;

use crate::{Result, Store, store::Version};

/// Bytes of a block: a request's worth.
const BLOCK_BYTES: u64 = 4 << 20;
/// Bytes of all copies of one address, unless the environment says otherwise.
const LIMIT_BYTES: u64 = 16 << 30;
/// Says how many bytes copies may take.
const LIMIT: &str = "OT_DISTILL_OBJECTS_BYTES";

/// The objects of a store, read through copies. A copy is of an object in one state: what is replaced is read anew. Nothing is
/// checked against its content here; who finds damage says [`Copies::forget`] and reads again.
pub struct Copies {
    store: Store,
    folder: PathBuf,
    limit: u64,
    kept: Mutex<Kept>,
    warned: AtomicBool,
}

/// Which copies there are.
#[derive(Default)]
struct Kept {
    /// Bytes and last use, by name of the copy.
    copies: HashMap<String, (u64, u64)>,
    /// Names by last use.
    order: BTreeMap<u64, String>,
    bytes: u64,
    /// Uses so far.
    uses: u64,
}

impl Copies {
    /// Copies of `store` in `folder`, as many as `OT_DISTILL_OBJECTS_BYTES` says, or 16 GiB; what is there already is used.
    ///
    /// # Errors
    /// A folder that cannot be made or read; a number that is none.
    pub fn new(store: Store, folder: &Path) -> Result<Self> {
        Self::limited(store, folder, limit()?)
    }

    fn limited(store: Store, folder: &Path, limit: u64) -> Result<Self> {
        files::create_directory(folder)?;
        let mut found = Vec::new();
        for path in files::list(folder)? {
            let Ok(about) = path.metadata() else {
                continue;
            };
            let name = path.file_name().and_then(|name| name.to_str());
            if let (Some(name), true) = (name, about.is_file()) {
                found.push((about.modified().ok(), name.to_owned(), about.len()));
            }
        }
        found.sort();
        let mut kept = Kept::default();
        for (_, name, bytes) in found {
            kept.add(name, bytes);
        }
        let copies = Self {
            store,
            folder: folder.to_owned(),
            limit,
            kept: Mutex::new(kept),
            warned: AtomicBool::new(false),
        };
        copies.make_room();
        Ok(copies)
    }

    /// As [`Store::read`].
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn read(&self, name: &str, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let version = self.store.known_version(name)?;
        let end = offset.saturating_add(bytes as u64);
        let prefix = copy_prefix(name, &version);
        let (Some(prefix), true) = (prefix, bytes > 0 && end <= version.bytes && self.limit > 0)
        else {
            return self.store.read(name, offset, bytes);
        };
        let mut whole = Vec::with_capacity(bytes);
        for block in offset / BLOCK_BYTES..=(end - 1) / BLOCK_BYTES {
            let first = block * BLOCK_BYTES;
            let last = (first + BLOCK_BYTES).min(version.bytes);
            let within = offset.max(first) - first..end.min(last) - first;
            let copy = format!("{prefix}-{block}");
            let found = self.read_copy(&copy, &within);
            let is_copied = if found.is_some() { "true" } else { "false" };
            counter!("ot_distill_storage_blocks_total", "copied" => is_copied).increment(1);
            match found {
                Some(part) => whole.extend(part),
                None => {
                    // A block has few enough bytes for any address space.
                    let bytes = usize::try_from(last - first).unwrap_or_default();
                    let read = self.store.read(name, first, bytes)?;
                    self.keep(&copy, &read);
                    let within = usize::try_from(within.start).unwrap_or_default()
                        ..usize::try_from(within.end).unwrap_or_default();
                    whole.extend(read.get(within).unwrap_or_default());
                }
            }
        }
        Ok(whole)
    }

    /// Drops the copies of an object and looks at it anew.
    pub fn forget(&self, name: &str) {
        if let Ok(version) = self.store.known_version(name)
            && let Some(prefix) = copy_prefix(name, &version)
        {
            for block in 0..=version.bytes / BLOCK_BYTES {
                self.drop_copy(&format!("{prefix}-{block}"));
            }
        }
        self.store.forget(name);
    }

    fn read_copy(&self, copy: &str, within: &Range<u64>) -> Option<Vec<u8>> {
        self.kept().touch(copy)?;
        let mut part = vec![0; usize::try_from(within.end - within.start).ok()?];
        let read = fs::File::open(self.folder.join(copy))
            .and_then(|file| file.read_exact_at(&mut part, within.start));
        match read {
            Ok(()) => Some(part),
            // Another process made room, or somebody cleaned up.
            Err(_) => {
                self.drop_copy(copy);
                None
            }
        }
    }

    /// A disk that takes nothing is no error: the object is read again.
    fn keep(&self, copy: &str, bytes: &[u8]) {
        let path = self.folder.join(copy);
        let written = tempfile::NamedTempFile::new_in(&self.folder).and_then(|mut file| {
            file.write_all(bytes)?;
            Ok(file.persist(&path)?)
        });
        match written {
            Ok(_) => {
                self.kept().add(copy.to_owned(), bytes.len() as u64);
                self.make_room();
            }
            Err(reason) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    let error = FileError::at("keep a copy in", &self.folder)(reason);
                    tracing::warn!("{error}; objects are read again each time");
                }
            }
        }
    }

    fn make_room(&self) {
        loop {
            let oldest = {
                let kept = self.kept();
                if kept.bytes <= self.limit {
                    return;
                }
                kept.order.values().next().cloned()
            };
            match oldest {
                Some(copy) => self.drop_copy(&copy),
                None => return,
            }
        }
    }

    fn drop_copy(&self, copy: &str) {
        self.kept().remove(copy);
        // What cannot be removed is found again by the next process.
        let _ = files::remove(&self.folder.join(copy));
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, copy: String, bytes: u64) {
        self.remove(&copy);
        self.uses += 1;
        self.bytes += bytes;
        self.order.insert(self.uses, copy.clone());
        self.copies.insert(copy, (bytes, self.uses));
    }

    fn touch(&mut self, copy: &str) -> Option<()> {
        let (_, last) = self.copies.get_mut(copy)?;
        self.uses += 1;
        let name = self.order.remove(&std::mem::replace(last, self.uses))?;
        self.order.insert(self.uses, name);
        Some(())
    }

    fn remove(&mut self, copy: &str) {
        if let Some((bytes, last)) = self.copies.remove(copy) {
            self.bytes -= bytes;
            self.order.remove(&last);
        }
    }
}

/// Names an object in its state; `None` where the service does not tell states apart.
fn copy_prefix(name: &str, version: &Version) -> Option<String> {
    version.tag.as_ref().map(|_| version.digest(name))
}

fn limit() -> Result<u64> {
    let Some(text) = env::var_os(LIMIT) else {
        return Ok(LIMIT_BYTES);
    };
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| {
        let reason = std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            format!(
                "`{}` is no number of bytes, as {LIMIT}=17179869184 is",
                text.display()
            ),
        );
        FileError::at("take the value of", Path::new(LIMIT))(reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(directory: &Path) -> Store {
        Store::open(Path::new(&format!("file://{}", directory.display()))).unwrap()
    }

    fn names(folder: &Path) -> Vec<PathBuf> {
        files::list(folder).unwrap()
    }

    #[test]
    fn what_was_read_is_read_from_its_copy_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let (objects, folder) = (
            directory.path().join("objects"),
            directory.path().join("copies"),
        );
        let store = store(&objects);
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES / 2)
            .map(|at| (at % 251) as u8)
            .collect();
        store.put_if_absent("a/b", bytes.clone()).unwrap();
        let copies = Copies::limited(store, &folder, 1 << 30).unwrap();
        let across = BLOCK_BYTES as usize - 100..BLOCK_BYTES as usize + 100;
        let read = || copies.read("a/b", across.start as u64, across.len());
        assert_eq!(read().unwrap(), &bytes[across.clone()]);
        assert_eq!(names(&folder).len(), 2);
        fs::remove_file(objects.join("a/b")).unwrap();
        assert_eq!(read().unwrap(), &bytes[across.clone()], "from the copies");
        // A copy that is gone is read anew, and then the object is missed.
        copies.forget("a/b");
        assert!(names(&folder).is_empty());
        assert!(read().unwrap_err().is_missing());
    }

    #[test]
    fn an_object_that_was_replaced_is_read_anew() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory.path().join("objects"));
        store.put_if_absent("a", vec![1; 100]).unwrap();
        let folder = directory.path().join("copies");
        let copies = Copies::limited(store.clone(), &folder, 1 << 30).unwrap();
        assert_eq!(copies.read("a", 0, 2).unwrap(), [1, 1]);
        store.remove("a").unwrap();
        store.put_if_absent("a", vec![2; 101]).unwrap();
        assert_eq!(copies.read("a", 0, 2).unwrap(), [2, 2]);
    }

    #[test]
    fn the_least_recently_used_go_first_and_a_later_process_finds_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory.path().join("objects"));
        for name in ["a", "b", "c"] {
            store
                .put_if_absent(name, name.repeat(1000).into_bytes())
                .unwrap();
        }
        let folder = directory.path().join("copies");
        let copies = Copies::limited(store.clone(), &folder, 2000).unwrap();
        for name in ["a", "b", "a", "c"] {
            assert_eq!(copies.read(name, 10, 1).unwrap(), name.as_bytes());
        }
        assert_eq!(names(&folder).len(), 2);
        fs::remove_dir_all(directory.path().join("objects")).unwrap();
        assert_eq!(copies.read("a", 0, 1).unwrap(), b"a");
        assert!(copies.read("b", 0, 1).is_err());
        let smaller = Copies::limited(store.clone(), &folder, 1000).unwrap();
        assert_eq!(names(&folder).len(), 1);
        assert_eq!(smaller.kept().bytes, 1000);
        let none = Copies::limited(store, &folder, 0).unwrap();
        assert_eq!(none.kept().bytes, 0);
    }
}
