//! The cache under crashes and failures at every single file operation, on files that lose or tear whatever was not synced.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    files::Files,
    tests::{entries, frame, header, segment, vocabulary},
    *,
};
use crate::store::BlockStore;

/// Content of a file: what the process sees, and what is on the medium for sure.
#[derive(Clone, Default)]
struct Inode {
    live: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Clone, Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    operations: u64,
    /// Number of the operation that fails.
    fails_at: Option<u64>,
    /// Whether all operations after it fail too, and a write half-happens.
    crashes: bool,
}

/// Files in memory.
#[derive(Default)]
struct FaultyFiles(Mutex<Disk>);

fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

impl Disk {
    /// What a machine finds after the power was lost.
    fn after_crash(&self, random: &mut StdRng) -> Disk {
        let mut disk = Disk::default();
        let names = self.names.keys().chain(self.durable_names.keys());
        let names: std::collections::BTreeSet<&String> = names.collect();
        for name in names {
            let (now, before) = (self.names.get(name), self.durable_names.get(name));
            let survivor = if random.random() { now } else { before };
            let Some(&inode) = survivor else { continue };
            let content = self.inodes[inode].torn(random);
            disk.names.insert(name.clone(), disk.inodes.len());
            disk.inodes.push(Inode {
                live: content.clone(),
                synced: content,
            });
        }
        disk.durable_names = disk.names.clone();
        disk
    }
}

impl Inode {
    fn torn(&self, random: &mut StdRng) -> Vec<u8> {
        let Self { live, synced } = self;
        if !live.starts_with(synced) {
            return if random.random() {
                live.clone()
            } else {
                synced.clone()
            };
        }
        let extra = live.len() - synced.len();
        let written = random.random_range(0..=extra);
        let zeros = random.random_range(0..=extra - written);
        let mut content = live[..synced.len() + written].to_vec();
        content.resize(content.len() + zeros, 0);
        content
    }
}

impl FaultyFiles {
    fn over(disk: Disk, fails_at: Option<u64>, crashes: bool) -> Self {
        Self(Mutex::new(Disk {
            operations: 0,
            fails_at,
            crashes,
            ..disk
        }))
    }

    fn disk(&self) -> Disk {
        self.0.lock().unwrap().clone()
    }

    /// Counts an operation that changes something; `half` happens where it crashes.
    fn change<T>(
        &self,
        half: impl FnOnce(&mut Disk),
        whole: impl FnOnce(&mut Disk) -> io::Result<T>,
    ) -> Result<T> {
        let mut disk = self.0.lock().unwrap();
        let number = disk.operations;
        disk.operations += 1;
        let changed = match disk.fails_at {
            Some(at) if number == at => {
                half(&mut disk);
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            Some(at) if number > at && disk.crashes => Err(io::Error::other("power is off")),
            _ => whole(&mut disk),
        };
        changed.map_err(Error::io("change", Path::new("the disk")))
    }
}

fn write(disk: &mut Disk, name: &str, offset: u64, bytes: &[u8]) {
    let inode = *disk.names.entry(name.to_owned()).or_insert_with(|| {
        disk.inodes.push(Inode::default());
        disk.inodes.len() - 1
    });
    let (live, end) = (&mut disk.inodes[inode].live, offset as usize + bytes.len());
    live.resize(live.len().max(end), 0);
    live[offset as usize..end].copy_from_slice(bytes);
}

fn missing() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl Files for FaultyFiles {
    fn list(&self, directory: &str) -> Result<Vec<String>> {
        let disk = self.0.lock().unwrap();
        let names = disk
            .names
            .keys()
            .filter(|name| directory_of(name) == directory);
        let base = |name: &String| name.rsplit('/').next().unwrap_or(name).to_owned();
        Ok(names.map(base).collect())
    }

    fn length(&self, name: &str) -> Result<Option<u64>> {
        let disk = self.0.lock().unwrap();
        let inode = disk.names.get(name);
        Ok(inode.map(|&inode| disk.inodes[inode].live.len() as u64))
    }

    fn read(&self, name: &str, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let disk = self.0.lock().unwrap();
        let live = disk.names.get(name).map(|&inode| &disk.inodes[inode].live);
        let part = live.ok_or_else(missing).and_then(|live| {
            let part = live.get(offset as usize..offset as usize + bytes);
            Ok(part.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
        });
        part.map_err(Error::io("read", Path::new(name)))
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.change(
            |disk| write(disk, name, offset, &bytes[..bytes.len() / 2]),
            |disk| {
                write(disk, name, offset, bytes);
                Ok(())
            },
        )
    }

    fn truncate(&self, name: &str, bytes: u64) -> Result<()> {
        self.change(
            |_| {},
            |disk| {
                let inode = *disk.names.get(name).ok_or_else(missing)?;
                disk.inodes[inode].live.truncate(bytes as usize);
                Ok(())
            },
        )
    }

    fn sync(&self, name: &str) -> Result<()> {
        self.change(
            |_| {},
            |disk| {
                let inode = *disk.names.get(name).ok_or_else(missing)?;
                disk.inodes[inode].synced = disk.inodes[inode].live.clone();
                Ok(())
            },
        )
    }

    fn rename_if_absent(&self, from: &str, to: &str) -> Result<bool> {
        self.change(
            |_| {},
            |disk| {
                if disk.names.contains_key(to) {
                    return Ok(false);
                }
                let inode = disk.names.remove(from).ok_or_else(missing)?;
                disk.names.insert(to.to_owned(), inode);
                Ok(true)
            },
        )
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.change(
            |_| {},
            |disk| {
                disk.names.remove(name);
                Ok(())
            },
        )
    }

    fn create_directory(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    fn sync_directory(&self, name: &str) -> Result<()> {
        self.change(
            |_| {},
            |disk| {
                disk.durable_names
                    .retain(|known, _| directory_of(known) != name);
                let names = disk
                    .names
                    .iter()
                    .filter(|(known, _)| directory_of(known) == name);
                let names: Vec<(String, usize)> = names
                    .map(|(known, &inode)| (known.clone(), inode))
                    .collect();
                disk.durable_names.extend(names);
                Ok(())
            },
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }
}

const SEQUENCES: u64 = 10;

/// Makes the cache where there is none, and computes what is missing: what `precompute` does, without its threads.
fn capture(files: &Arc<FaultyFiles>) -> Result<()> {
    let files: Arc<dyn Files> = files.clone();
    let sequences = entries(100, SEQUENCES);
    let path = Path::new("cache");
    let vocabulary = vocabulary();
    let matrices = Matrices {
        basis: None,
        projection: None,
        vocabulary: &vocabulary,
    };
    let cache = match Cache::over(files.clone(), path, Access::Write, None)? {
        Some(cache) => cache,
        None => {
            let first = segment(&sequences);
            Cache::create_over(files, path, header(), &matrices, &first, None)?
        }
    };
    let store = cache.store()?;
    for index in 0..SEQUENCES {
        if !store.contains(index) {
            store.put(index, &frame(&cache, &sequences, index))?;
            store.flush()?;
        }
    }
    Ok(())
}

/// Everything that is sealed.
fn sealed_objects(disk: &Disk) -> BTreeMap<String, Vec<u8>> {
    let names = disk.names.iter().filter(|(name, _)| {
        !name.starts_with(storage::TEMPORARY) && !name.starts_with(partial::PARTIAL)
    });
    names
        .map(|(name, &inode)| (name.clone(), disk.inodes[inode].live.clone()))
        .collect()
}

fn uninterrupted() -> Disk {
    let files = Arc::new(FaultyFiles::default());
    capture(&files).unwrap();
    files.disk()
}

#[test]
fn a_crash_at_any_operation_ends_in_the_same_bytes() {
    let expected = uninterrupted();
    let wanted = sealed_objects(&expected);
    assert!(wanted.len() > 5, "{:?}", wanted.keys());
    assert!(expected.operations > 50, "{}", expected.operations);
    let mut kept = 0;
    for at in 0..expected.operations {
        for seed in 0..6 {
            let mut random = StdRng::seed_from_u64(1000 * at + seed);
            let files = Arc::new(FaultyFiles::over(Disk::default(), Some(at), true));
            assert!(capture(&files).is_err(), "operation {at} did not count");
            let mut disk = files.disk().after_crash(&mut random);
            // A second crash while the first one is being mended.
            if seed % 2 == 1 {
                let second = random.random_range(0..expected.operations);
                let files = Arc::new(FaultyFiles::over(disk.clone(), Some(second), true));
                if capture(&files).is_err() {
                    disk = files.disk().after_crash(&mut random);
                }
            }
            kept += u64::from(
                disk.names
                    .keys()
                    .any(|name| name.starts_with(contents::SHARDS)),
            );
            let files = Arc::new(FaultyFiles::over(disk, None, false));
            capture(&files).unwrap_or_else(|error| panic!("operation {at}, seed {seed}: {error}"));
            let found = sealed_objects(&files.disk());
            let found: BTreeMap<_, _> = found
                .into_iter()
                .filter(|(name, _)| !name.starts_with(storage::DAMAGED))
                .collect();
            assert!(found == wanted, "operation {at}, seed {seed}");
        }
    }
    assert!(kept > 100, "sealed shards survive crashes: {kept}");
}

/// A cache that was begun, and not one frame.
fn begun() -> Disk {
    let files = Arc::new(FaultyFiles::default());
    let over: Arc<dyn Files> = files.clone();
    let vocabulary = vocabulary();
    let matrices = Matrices {
        basis: None,
        projection: None,
        vocabulary: &vocabulary,
    };
    let path = Path::new("cache");
    let first = segment(&entries(1000, SEQUENCES));
    let mut cache = Cache::create_over(over, path, header(), &matrices, &first, None).unwrap();
    for from in [SEQUENCES, 2 * SEQUENCES] {
        let sequences = entries(1000 + from, SEQUENCES);
        let sequences = sequences.iter().map(Entry::of).collect();
        cache
            .add(Fingerprint::of(b"another"), sequences, 2, (1, 13))
            .unwrap();
    }
    assert!(cache.is_empty().unwrap());
    files.disk()
}

/// Removes a cache without frames where there is one.
fn discard(files: &Arc<FaultyFiles>) -> Result<()> {
    let over: Arc<dyn Files> = files.clone();
    match Cache::over(over, Path::new("cache"), Access::Write, None)? {
        Some(cache) => {
            assert!(cache.is_empty()?);
            cache.discard()
        }
        None => Ok(()),
    }
}

#[test]
fn a_crash_while_an_empty_cache_is_removed_leaves_it_or_none() {
    let begun = begun();
    let files = Arc::new(FaultyFiles::over(begun.clone(), None, false));
    discard(&files).unwrap();
    let operations = files.disk().operations;
    assert!(operations > 6, "{operations}");
    for at in 0..operations {
        for seed in 0..6 {
            let mut random = StdRng::seed_from_u64(1000 * at + seed);
            let files = Arc::new(FaultyFiles::over(begun.clone(), Some(at), true));
            assert!(discard(&files).is_err(), "operation {at} did not count");
            let disk = files.disk().after_crash(&mut random);
            let files = Arc::new(FaultyFiles::over(disk, None, false));
            discard(&files).unwrap_or_else(|e| panic!("operation {at}, seed {seed}: {e}"));
            capture(&files).unwrap_or_else(|e| panic!("operation {at}, seed {seed}: {e}"));
            assert!(
                sealed_objects(&files.disk()) == sealed_objects(&uninterrupted()),
                "operation {at}, seed {seed}"
            );
        }
    }
}

#[test]
fn a_failure_at_any_operation_is_told_and_passes() {
    let expected = uninterrupted();
    let wanted = sealed_objects(&expected);
    for at in 0..expected.operations {
        let files = Arc::new(FaultyFiles::over(Disk::default(), Some(at), false));
        let error = match capture(&files) {
            // What is only tidied up may fail without a word.
            Ok(()) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(message) = &error {
            assert!(message.contains("cannot "), "operation {at}: {message}");
        }
        capture(&files).unwrap();
        assert!(
            sealed_objects(&files.disk()) == wanted,
            "operation {at}: {error:?}"
        );
    }
}
