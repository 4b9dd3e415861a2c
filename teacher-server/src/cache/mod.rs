/*! Provides the cache: what a teacher said about a corpus, on disk, sealed shard by sealed shard.

```text
 header      how it was captured: the handshake, the settings
 vocabulary  the bytes behind every id           projection, basis/NNN   of a sketch; of the exact state the basis
 segments/N  which sequences came together, cut into batches and shards: the static plan
 members/N   which of them are the corpus' of today, where these are not all in their order: what is served
 shards/N    sealed: all frames of a shard, FORMAT.md
 partial/N   frames of a shard that is not complete, in the order in which they came
 manifests/N in object storage alone: shards that lie in other caches, after a merge
 tmp/        objects being written            damaged/  shards that were set aside            LOCK  the writer's

 Production ── put ──> CacheStore: partial/N ── all frames of a shard ──> shards/N ── get ──> Reader
```

At an address of object storage any number of machines fill one cache: what is sealed lies there, put where its name is free;
`partial/`, `tmp/` and a lock lie on the machine that makes them.

Everything but `partial/` is written whole or not at all and never changed. A partial shard may end in anything after a crash:
each frame carries its checksum, so the whole ones at its start are kept and the rest is cut off. What a frame says depends on
its sequence, its batch and the settings, all fixed by the plan, so an interrupted capture ends in the same bytes.

The medium may lose what was not synced and half-write what was; it may not reorder a synced write behind a later rename.
*/
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

mod begun;
mod contents;
mod files;
mod layout;
mod manifest;
mod matrices;
mod members;
mod merge;
mod partial;
mod place;
mod remote;
mod sealed;
mod storage;
mod store;
mod verify;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use distill_program::lock::Lock;
use distill_proto::{Fingerprint, Frame, FrameContext, fingerprint::FingerprintBuilder, v1};

use crate::{
    Error, Result,
    plan::{Entry, Pairs, Served},
    store::StoredBlock,
};
pub use contents::Contents;
use files::Files;
pub use layout::{Segment, ShardPlan};
pub use matrices::{Matrices, projection_digest};
use members::Members;
pub use merge::{Merged, merge};
use storage::Storage;
pub use store::{Access, CacheStore, Sealed};
pub use verify::{Damage, Verdict};

/// Version of the directory's layout.
const VERSION: u32 = 1;
const HEADER: &str = "header";
const SEGMENTS: &str = "segments";
const MEMBERS: &str = "members";
const LOCK: &str = "LOCK";

/// An open cache.
pub struct Cache {
    path: PathBuf,
    files: Arc<dyn Files>,
    storage: Storage,
    header: v1::CacheHeader,
    info: v1::GetServerInfoResponse,
    plan: Fingerprint,
    segments: Vec<Segment>,
    members: Members,
    access: Access,
    _lock: Option<Lock>,
}

impl Cache {
    /// Whether a cache may be made in `path`, or is there.
    ///
    /// # Errors
    /// `Cache` where it holds somebody's other files; `Io`.
    pub fn check_place(path: &Path) -> Result<()> {
        place::check(path)
    }

    /// Opens the cache in `path`; `None` where there is none. With `Access::Write` no one else can write to it meanwhile.
    ///
    /// # Errors
    /// `Cache` where it is damaged, of another version, or somebody writes to it; `Io`.
    pub fn open(path: &Path, access: Access) -> Result<Option<Self>> {
        let (files, lock) = place::open(path, access)?;
        Self::over(files, path, access, lock)
    }

    /// As [`Cache::open`], where there has to be one.
    ///
    /// # Errors
    /// As [`Cache::open`]; `Cache` where there is none.
    pub fn find(path: &Path, access: Access) -> Result<Self> {
        let missing = "there is no cache here; make one with `teacher-server precompute`";
        Self::open(path, access)?.ok_or_else(|| Error::cache(path, missing))
    }

    fn over(
        files: Arc<dyn Files>,
        path: &Path,
        access: Access,
        lock: Option<Lock>,
    ) -> Result<Option<Self>> {
        let storage = Storage::new(files.clone());
        if access == Access::Write {
            storage.clean()?;
        }
        let Some(header) = sealed::get::<v1::CacheHeader>(&storage, HEADER)? else {
            return Ok(None);
        };
        let refuse = |reason: String| Error::cache(path, reason);
        if header.version != VERSION {
            return Err(refuse(format!(
                "version {} is not readable by this build, which reads {VERSION}",
                header.version
            )));
        }
        let info = header.info.clone().unwrap_or_default();
        let plan = Fingerprint::from_hex(&info.plan_fingerprint)
            .ok_or_else(|| refuse("the header names no plan".into()))?;
        let mut cache = Self {
            path: path.to_owned(),
            files,
            storage,
            header,
            info,
            plan,
            segments: Vec::new(),
            members: Members::default(),
            access,
            _lock: lock,
        };
        // Before the segments: a list that is written meanwhile may name what a later one holds.
        let members = members::latest(cache.files.as_ref(), &cache.storage)?;
        cache.read_segments()?;
        if let Some((number, message)) = members {
            let members = Members::from_message(&message, cache.count());
            let path = || cache.storage.path(&members::name(number));
            let refused = |reason| {
                Error::cache(
                    path(),
                    format!(
                        "{reason}; bring the file back from a copy, or remove it and run `teacher-server precompute` again"
                    ),
                )
            };
            cache.members = members.map_err(refused)?;
        }
        Ok(Some(cache))
    }

    /// The settings that the cache in `path` was captured with, TOML; `None` where there is no cache.
    ///
    /// # Errors
    /// `Cache` where its header is damaged.
    pub fn captured_settings(path: &Path) -> Result<Option<String>> {
        let (files, _) = place::open(path, Access::Look)?;
        let storage = Storage::new(files);
        let header = sealed::get::<v1::CacheHeader>(&storage, HEADER)?;
        Ok(header.map(|header| header.settings))
    }

    /// Makes a cache in `path`, which must hold none; the header comes last, so that a crash leaves a cache or none. Others may make
    /// the same at this moment, where the place is shared.
    ///
    /// # Errors
    /// `Cache` where there is one, somebody writes there, or makes another one; `Io`.
    pub fn create(
        path: &Path,
        header: v1::CacheHeader,
        matrices: &Matrices<'_>,
        first: &Segment,
    ) -> Result<Self> {
        let (files, lock) = place::open(path, Access::Write)?;
        Self::create_over(files, path, header, matrices, first, lock)
    }

    fn create_over(
        files: Arc<dyn Files>,
        path: &Path,
        mut header: v1::CacheHeader,
        matrices: &Matrices<'_>,
        first: &Segment,
        lock: Option<Lock>,
    ) -> Result<Self> {
        let refuse = |reason: &str| Error::cache(path, reason.to_owned());
        let storage = Storage::new(files.clone());
        if !files.is_shared() && storage.length(HEADER)?.is_some() {
            return Err(refuse("there is a cache already"));
        }
        // Others may make the same cache at this moment, and what this machine has of another one is told from it by its frames.
        let strangers: &[&str] = match files.is_shared() {
            true => &[],
            false => &[MEMBERS, contents::SHARDS, partial::PARTIAL],
        };
        for directory in strangers {
            if !files.list(directory)?.is_empty() {
                return Err(refuse(
                    "holds shards but no header; name an empty directory, or remove what is in it",
                ));
            }
        }
        storage.clean()?;
        matrices::remove_leftovers(files.as_ref())?;
        header.version = VERSION;
        header.basis_pieces = matrices.put(&storage)?;
        sealed::put(&storage, &segment_name(first.number), &first.to_message())?;
        sealed::put(&storage, HEADER, &header)?;
        drop(storage);
        let missing = || refuse("the header that was just written is not there");
        Self::over(files, path, Access::Write, lock)?.ok_or_else(missing)
    }

    fn read_segments(&mut self) -> Result<()> {
        self.segments.clear();
        for number in 0.. {
            let name = segment_name(number);
            let message = sealed::get::<v1::CacheSegment>(&self.storage, &name)?;
            let Some(message) = message else {
                if self.refuse_without_segment(number)? {
                    // Another process has just put it there.
                    return self.read_segments();
                }
                return Ok(());
            };
            let path = self.storage.path(&name);
            let segment = Segment::from_message(&message, self.segments.last(), path)?;
            self.segments.push(segment);
        }
        Ok(())
    }

    /// Refuses a cache that lost its segments from `missing` on: a later one is there, or a shard of one of them. Says whether it is
    /// there by now.
    fn refuse_without_segment(&self, missing: u32) -> Result<bool> {
        let end = self.segments.last().map_or(0, Segment::end_shard);
        for (directory, first) in [
            (SEGMENTS, missing),
            (contents::SHARDS, end),
            (partial::PARTIAL, end),
        ] {
            let names = self.files.list(directory)?;
            let later = names
                .iter()
                .find(|name| name.parse::<u32>().is_ok_and(|number| number >= first));
            if self.is_shared() && self.storage.length(&segment_name(missing))?.is_some() {
                return Ok(true);
            }
            if let Some(later) = later {
                return Err(Error::cache(
                    self.files.path(&segment_name(missing)),
                    format!(
                        "is missing, though {directory}/{later} is there, so a part of the corpus is lost: bring the file back \
                         from a copy, or start a new cache"
                    ),
                ));
            }
        }
        Ok(false)
    }

    /// Adds sequences after those that are there; they get batches and shards of their own.
    ///
    /// # Errors
    /// `Io` naming the place.
    pub fn add(
        &mut self,
        corpus: Fingerprint,
        entries: Vec<Entry>,
        batch_size: usize,
        sizes: (u64, u64),
    ) -> Result<()> {
        let segment = Segment::cut(self.segments.last(), corpus, entries, batch_size, sizes);
        let name = segment_name(segment.number);
        sealed::put(&self.storage, &name, &segment.to_message())?;
        self.segments.push(segment);
        Ok(())
    }

    /// Whether others write to it meanwhile, on this machine or another.
    pub fn is_shared(&self) -> bool {
        self.files.is_shared()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Plan that all frames belong to.
    pub fn plan(&self) -> Fingerprint {
        self.plan
    }

    /// Names the corpus that is served: that of the only segment, or all of them, or the one whose members are listed.
    pub fn corpus(&self) -> Fingerprint {
        match (self.members.corpus, self.segments.as_slice()) {
            (Some(corpus), _) => corpus,
            (None, [only]) => only.corpus,
            (None, all) => {
                let builder = FingerprintBuilder::new("corpora");
                let builder = all.iter().fold(builder, |builder, segment| {
                    builder.field("corpus", &segment.corpus.0)
                });
                builder.finish()
            }
        }
    }

    /// The segments in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// How many sequences it knows.
    pub fn count(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end_index)
    }

    /// What of it is served: the corpus that it was last filled for.
    pub fn served(&self) -> &Served {
        &self.members.served
    }

    /// All sequences in order.
    pub fn entries(&self) -> Vec<Entry> {
        let entries = self.segments.iter().flat_map(|segment| &segment.entries);
        entries.copied().collect()
    }

    /// The settings that it was captured with, TOML.
    pub fn settings(&self) -> &str {
        &self.header.settings
    }

    /// Longest sequence the model takes.
    pub fn positions_max(&self) -> usize {
        self.header.positions_max as usize
    }

    /// The handshake of what is served of it.
    pub fn info(&self) -> v1::GetServerInfoResponse {
        let mut entries = self.entries();
        if let Some(places) = self.served().places() {
            let served = places
                .iter()
                .filter_map(|&place| entries.get(usize::try_from(place).ok()?));
            entries = served.copied().collect();
        }
        let mut info = v1::GetServerInfoResponse {
            corpus_fingerprint: self.corpus().to_hex(),
            sequence_count: 0,
            token_count: 0,
            target_count: 0,
            seq_len: 0,
            ..self.info.clone()
        };
        for entry in &entries {
            info.sequence_count += 1;
            info.token_count += u64::from(entry.tokens);
            info.target_count += u64::from(entry.targets);
            info.seq_len = info.seq_len.max(entry.tokens);
        }
        Pairs::of(&entries).tell(&mut info);
        info
    }

    /// The files with the plan that they follow.
    pub fn contents(&self) -> Contents {
        let shards = self.segments.iter().flat_map(Segment::shard_plans);
        Contents {
            files: self.files.clone(),
            storage: self.storage.clone(),
            plan: self.plan,
            shards: shards.collect(),
            entries: self.entries().into(),
        }
    }

    /// The store of its frames.
    ///
    /// # Errors
    /// As [`CacheStore::open`].
    pub fn store(&self) -> Result<CacheStore> {
        CacheStore::open(self.contents(), self.access)
    }

    /// The frame of a block that its store gave.
    ///
    /// # Errors
    /// `Proto` where these are no bytes of that frame.
    pub fn decode(&self, block: &StoredBlock) -> Result<Frame> {
        let context = FrameContext {
            plan: self.plan,
            shard: block.shard,
            index: block.index,
        };
        Ok(Frame::decode(&block.frame, &context)?)
    }
}

fn segment_name(number: u32) -> String {
    format!("{SEGMENTS}/{number:05}")
}
