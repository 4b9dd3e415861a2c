//! Provides what becomes of a cache that was begun and never filled: whoever wants other settings may begin it anew.

use super::{
    Access, Cache, HEADER, MEMBERS, SEGMENTS,
    contents::SHARDS,
    files::Files,
    members,
    partial::PARTIAL,
    segment_name,
    storage::DAMAGED,
    store::{CacheStore, Sealed},
};
use crate::Result;

impl Cache {
    /// Whether it holds no frame, in shards or set aside: nothing that was computed is lost with it but its sketch.
    ///
    /// # Errors
    /// `Io` naming the place.
    pub fn is_empty(&self) -> Result<bool> {
        for directory in [SHARDS, DAMAGED] {
            if !self.files.list(directory)?.is_empty() {
                return Ok(false);
            }
        }
        let Sealed {
            frames,
            partial_frames,
            ..
        } = CacheStore::open(self.contents(), Access::Look)?.sealed();
        Ok(frames + partial_frames == 0)
    }

    /// Removes what makes it a cache, so that one can be made in its place. A crash in between leaves a cache without frames
    /// or none: what lists sequences goes before the segments that have them, segments from the last one on, since they are
    /// read up to the first that is missing, and the header goes after them.
    ///
    /// # Errors
    /// `Io` naming the place.
    pub fn discard(self) -> Result<()> {
        let files = self.files.as_ref();
        for name in files.list(PARTIAL)? {
            remove(files, PARTIAL, &format!("{PARTIAL}/{name}"))?;
        }
        for number in members::numbers(files)? {
            remove(files, MEMBERS, &members::name(number))?;
        }
        for segment in self.segments.iter().rev() {
            remove(files, SEGMENTS, &segment_name(segment.number))?;
        }
        remove(files, "", HEADER)
    }
}

/// Removes a file of `directory` for good.
fn remove(files: &dyn Files, directory: &str, name: &str) -> Result<()> {
    files.remove(name)?;
    files.sync_directory(directory)
}
