//! Provides the store of a cache: frames in sealed shards and, until their shard is complete, in partial ones.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use distill_proto::{ShardEntry, ShardHeader};

use super::{
    contents::{Contents, sealed_name},
    layout::ShardPlan,
    partial::{self, PARTIAL, Partial},
};
use crate::{
    Error, Result,
    store::{BlockStore, StoredBlock},
};

/// Time between syncs of partial shards: what a power loss costs at most.
const SYNC_INTERVAL: Duration = Duration::from_secs(2);

/// Requests to object storage at a time, while shards are looked for.
const REQUESTS: usize = 32;

/// What is there of a shard.
#[derive(Debug)]
enum State {
    /// These frames in its partial file, maybe none.
    Partial(Partial),
    /// All of it.
    Sealed(Arc<ShardHeader>),
}

/// Where a frame is.
enum Found {
    Sealed(Arc<ShardHeader>),
    Partial(Option<(u64, usize)>),
}

/// Whether a store may change what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Damage is told.
    Read,
    /// Nothing is changed; damaged shards count as missing, since whoever writes computes them anew.
    Look,
    /// Damage is set aside, to be computed anew. The cache's lock is held.
    Write,
}

/// Frames of a cache. One writer, many readers.
pub struct CacheStore {
    contents: Contents,
    access: Access,
    states: RwLock<Vec<State>>,
    /// Held by whoever changes files; readers do not wait for it.
    writing: Mutex<Unsynced>,
}

/// Partial shards that a power loss could shorten.
struct Unsynced {
    shards: BTreeSet<u32>,
    since: Instant,
}

impl CacheStore {
    /// Finds what is there.
    ///
    /// # Errors
    /// `Io`; `Damaged` where a sealed shard's header is and `access` is to read only.
    pub fn open(contents: Contents, access: Access) -> Result<Self> {
        let store = Self {
            states: RwLock::new(Vec::with_capacity(contents.shards.len())),
            writing: Mutex::new(Unsynced {
                shards: BTreeSet::new(),
                since: Instant::now(),
            }),
            contents,
            access,
        };
        let shards = store.contents.shards.clone();
        for found in store.find_all(&shards)? {
            store.states_mut().push(found);
        }
        if access == Access::Write {
            // A crash between the last frame and the seal leaves a whole shard in its partial file.
            for &shard in shards.iter() {
                store.seal_if_complete(shard)?;
            }
        }
        Ok(store)
    }

    /// What is there of all shards, in order; where each look is a request, several are made at a time.
    fn find_all(&self, shards: &[ShardPlan]) -> Result<Vec<State>> {
        let find = |shards: &[ShardPlan]| -> Result<Vec<State>> {
            shards.iter().map(|&shard| self.find(shard)).collect()
        };
        if !self.contents.files.is_shared() {
            return find(shards);
        }
        let each = shards.len().div_ceil(REQUESTS).max(1);
        std::thread::scope(|scope| {
            let parts = shards.chunks(each);
            let parts: Vec<_> = parts.map(|part| scope.spawn(|| find(part))).collect();
            let ended = |_| Error::Internal("a thread that looked for shards has ended".into());
            let mut all = Vec::with_capacity(shards.len());
            for part in parts {
                all.extend(part.join().map_err(ended)??);
            }
            Ok(all)
        })
    }

    fn find(&self, shard: ShardPlan) -> Result<State> {
        let Contents { files, storage, .. } = &self.contents;
        let partial_name = partial::name(shard.number);
        match self.contents.sealed_header(shard) {
            Ok(Some(header)) => {
                if self.access == Access::Write {
                    files.remove(&partial_name)?;
                }
                return Ok(State::Sealed(Arc::new(header)));
            }
            Ok(None) => {}
            Err(error @ Error::Damaged { .. }) if self.access == Access::Write => {
                tracing::warn!("{error}; it is set aside");
                storage.set_aside(&sealed_name(shard.number))?;
            }
            Err(error @ Error::Damaged { .. }) if self.access == Access::Look => {
                tracing::warn!("{error}");
            }
            Err(error) => return Err(error),
        }
        let expected = self.contents.expected(shard);
        let partial = Partial::scan(files.as_ref(), &expected)?;
        if let (Access::Write, Some(partial)) = (self.access, &partial) {
            files.truncate(&partial_name, partial.end)?;
        }
        Ok(State::Partial(partial.unwrap_or_default()))
    }

    fn states(&self) -> std::sync::RwLockReadGuard<'_, Vec<State>> {
        self.states.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn states_mut(&self) -> std::sync::RwLockWriteGuard<'_, Vec<State>> {
        self.states.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, Unsynced> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard of a frame and its position in it.
    fn place(&self, index: u64) -> Option<(ShardPlan, usize)> {
        let shards = &self.contents.shards;
        let after = shards.partition_point(|shard| shard.first_index <= index);
        let shard = *shards.get(after.checked_sub(1)?)?;
        let position = usize::try_from(index - shard.first_index).ok()?;
        (position < shard.count).then_some((shard, position))
    }

    /// Looks at the state of a shard, without waiting for a disk.
    fn look<T>(&self, shard: ShardPlan, at: impl FnOnce(&State) -> T) -> Option<T> {
        self.states().get(shard.number as usize).map(at)
    }

    /// All of a partial shard's places, once it is complete.
    fn complete(&self, shard: ShardPlan) -> Option<Partial> {
        let complete = |state: &State| match state {
            State::Partial(partial) if partial.extents.len() >= shard.count => {
                Some(partial.clone())
            }
            _ => None,
        };
        self.look(shard, complete).flatten()
    }

    fn set_state(&self, shard: ShardPlan, state: State) {
        if let Some(slot) = self.states_mut().get_mut(shard.number as usize) {
            *slot = state;
        }
    }

    /// The shard's number where it is sealed, frames and shards that are, and bytes of the latter: for people.
    pub fn sealed(&self) -> Sealed {
        let mut found = Sealed::default();
        for state in self.states().iter() {
            match state {
                State::Sealed(header) => {
                    found.shards += 1;
                    found.bytes += header.file_bytes();
                    found.frames += header.entries.len() as u64;
                }
                State::Partial(partial) => {
                    found.partial_frames += partial.extents.len() as u64;
                    found.partial_bytes += partial.end;
                }
            }
        }
        found
    }

    /// Which shard a frame is in, sealed or not.
    pub fn shards(&self) -> &[ShardPlan] {
        &self.contents.shards
    }

    fn partial_frame(
        &self,
        shard: ShardPlan,
        position: usize,
        (offset, bytes): (u64, usize),
    ) -> Result<Option<Vec<u8>>> {
        let (files, name) = (&self.contents.files, partial::name(shard.number));
        let damaged = |reason| Error::Damaged {
            path: files.path(&name),
            shard: shard.number,
            offset,
            reason,
        };
        let frame = match files.read(&name, offset, bytes) {
            // Sealed since the place was looked up.
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => return Ok(None),
            Err(error) if error.io_kind() == Some(ErrorKind::UnexpectedEof) => {
                return Err(damaged("the file was cut".to_owned()));
            }
            frame => frame?,
        };
        let checked = self.contents.expected(shard).check(position, &frame);
        checked.map_err(damaged)?;
        Ok(Some(frame))
    }

    /// Seals a shard whose frames are all there.
    fn seal_if_complete(&self, shard: ShardPlan) -> Result<()> {
        let Some(partial) = self.complete(shard) else {
            return Ok(());
        };
        let mut frames = Vec::with_capacity(usize::try_from(partial.end).unwrap_or_default());
        let mut entries = Vec::with_capacity(shard.count);
        let expected = self.contents.expected(shard);
        for ((&position, &extent), entry) in partial.extents.iter().zip(expected.entries) {
            let frame = self.partial_frame(shard, position, extent)?;
            let gone = || Error::Internal(format!("partial shard {} is gone", shard.number));
            let frame = frame.ok_or_else(gone)?;
            let too_long = |_| Error::Internal(format!("a frame of {} bytes", frame.len()));
            entries.push(ShardEntry {
                sequence_id: entry.id,
                frame_bytes: u32::try_from(frame.len()).map_err(too_long)?,
            });
            frames.extend(frame);
        }
        let header =
            ShardHeader::new(self.contents.plan, shard.number, shard.first_index, entries)?;
        let bytes = [header.encode(), frames].concat();
        let name = sealed_name(shard.number);
        if !self.contents.storage.put_if_absent(&name, &bytes)? {
            self.compare(&name, &bytes)?;
        }
        // Read back: where the name was taken, it must be the same shard.
        let header = self.contents.sealed_header(shard)?.unwrap_or(header);
        self.set_state(shard, State::Sealed(Arc::new(header)));
        let (files, name) = (&self.contents.files, partial::name(shard.number));
        files.remove(&name)
    }

    /// Says where a shard that another process was first to seal has other bytes, which stay.
    fn compare(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let storage = &self.contents.storage;
        let length = storage.length(name)?.unwrap_or_default();
        let same = length == bytes.len() as u64 && storage.read(name, 0, bytes.len())? == bytes;
        if !same {
            tracing::warn!(
                "{}: another process sealed it first, with other bytes, and these stay: does it compute on other hardware?",
                storage.path(name).display()
            );
        }
        Ok(())
    }

    /// Makes a sealed shard a partial one of those of its frames that are whole.
    ///
    /// # Errors
    /// `Io` naming the place.
    pub fn reopen(&self, shard: ShardPlan) -> Result<()> {
        let mut unsynced = self.writing();
        let sealed = |state: &State| match state {
            State::Sealed(header) => Some(header.clone()),
            State::Partial(_) => None,
        };
        let Some(header) = self.look(shard, sealed).flatten() else {
            return Ok(());
        };
        let whole = (0..shard.count).filter_map(|position| {
            let frame = self.contents.sealed_frame(&header, position);
            frame.ok().map(|frame| (position, frame))
        });
        let whole: Vec<(usize, Vec<u8>)> = whole.collect();
        self.contents
            .storage
            .set_aside(&sealed_name(shard.number))?;
        self.set_state(shard, State::Partial(Partial::default()));
        for (position, frame) in whole {
            self.append(&mut unsynced, shard, position, &frame)?;
        }
        Ok(())
    }

    fn append(
        &self,
        unsynced: &mut Unsynced,
        shard: ShardPlan,
        position: usize,
        frame: &[u8],
    ) -> Result<()> {
        let end = |state: &State| match state {
            State::Partial(partial) if !partial.extents.contains_key(&position) => {
                Some(partial.end)
            }
            _ => None,
        };
        let Some(end) = self.look(shard, end).flatten() else {
            return Ok(());
        };
        let (files, name) = (&self.contents.files, partial::name(shard.number));
        if end == 0 {
            files.create_directory(PARTIAL)?;
        }
        files.write_at(&name, end, frame)?;
        unsynced.shards.insert(shard.number);
        if let Some(State::Partial(partial)) = self.states_mut().get_mut(shard.number as usize) {
            partial.add(position, frame.len());
        }
        Ok(())
    }

    fn sync(&self, unsynced: &mut Unsynced) -> Result<()> {
        let files = &self.contents.files;
        while let Some(&shard) = unsynced.shards.first() {
            let name = partial::name(shard);
            // Unless it was sealed meanwhile.
            if !matches!(files.length(&name), Ok(None)) {
                files.sync(&name)?;
            }
            unsynced.shards.remove(&shard);
        }
        if files.length(PARTIAL).is_ok_and(|found| found.is_some()) {
            files.sync_directory(PARTIAL)?;
        }
        unsynced.since = Instant::now();
        Ok(())
    }
}

/// How much of a cache is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Sealed shards.
    pub shards: u64,
    /// Their frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames in partial shards.
    pub partial_frames: u64,
    /// Their bytes.
    pub partial_bytes: u64,
}

impl BlockStore for CacheStore {
    fn contains(&self, index: u64) -> bool {
        let Some((shard, position)) = self.place(index) else {
            return false;
        };
        match self.states().get(shard.number as usize) {
            Some(State::Sealed(_)) => true,
            Some(State::Partial(partial)) => partial.extents.contains_key(&position),
            None => false,
        }
    }

    fn get(&self, index: u64) -> Result<Option<StoredBlock>> {
        let Some((shard, position)) = self.place(index) else {
            return Ok(None);
        };
        let mut frame = None;
        // Twice: a shard may be sealed between the look and the reading.
        for _ in 0..2 {
            let found = |state: &State| match state {
                State::Sealed(header) => Found::Sealed(header.clone()),
                State::Partial(partial) => Found::Partial(partial.extents.get(&position).copied()),
            };
            frame = match self.look(shard, found) {
                None | Some(Found::Partial(None)) => return Ok(None),
                Some(Found::Partial(Some(extent))) => {
                    self.partial_frame(shard, position, extent)?
                }
                Some(Found::Sealed(header)) => {
                    match self.contents.sealed_frame(&header, position) {
                        Err(error @ Error::Damaged { .. }) if self.access == Access::Write => {
                            tracing::warn!(
                                "{error}; the shard is set aside, and what is damaged computed anew"
                            );
                            self.reopen(shard)?;
                            return Ok(None);
                        }
                        frame => Some(frame?),
                    }
                }
            };
            if frame.is_some() {
                break;
            }
        }
        Ok(frame.map(|frame| StoredBlock {
            shard: shard.number,
            index,
            frame: frame.into(),
        }))
    }

    fn shard_of(&self, index: u64) -> u32 {
        self.place(index).map_or(0, |(shard, _)| shard.number)
    }

    fn put(&self, index: u64, frame: &[u8]) -> Result<()> {
        let outside = || Error::Internal(format!("frame {index} is outside the cache's plan"));
        let (shard, position) = self.place(index).ok_or_else(outside)?;
        let mut unsynced = self.writing();
        self.append(&mut unsynced, shard, position, frame)?;
        self.seal_if_complete(shard)?;
        if unsynced.since.elapsed() >= SYNC_INTERVAL {
            self.sync(&mut unsynced)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let mut unsynced = self.writing();
        self.sync(&mut unsynced)?;
        // Of a shard that was whole the storage may have been away.
        for &shard in self.contents.shards.iter() {
            self.seal_if_complete(shard)?;
        }
        Ok(())
    }
}
