//! Provides rows that need no teacher: a sequence of which the teacher reads what is in the cache already takes them from there.
//!
//! That is so where only the student's view of a record was edited. Which frame a sequence takes its rows from is settled
//! when its segment is written, and is not looked for again: an interrupted capture has to end in the same bytes.

use std::collections::HashMap;

use crate::{
    Error, Result, frames,
    plan::{Entry, Plan},
    progress::{Progress, Words},
    store::BlockStore,
};

const WORDS: Words = Words {
    label: "cache",
    parts: "sequences",
    units: "tokens",
};

/// Says of `new` sequences which of those that the cache knows they take their rows from: the first of the same content
/// whose frame is there.
pub(super) fn find_sources(known: &[Entry], contains: impl Fn(u64) -> bool, new: &mut [Entry]) {
    let mut wanted: HashMap<u64, Option<u64>> =
        new.iter().map(|entry| (entry.content_id, None)).collect();
    for (index, entry) in (0..).zip(known) {
        if let Some(source @ None) = wanted.get_mut(&entry.content_id)
            && contains(index)
        {
            *source = Some(index);
        }
    }
    let same = |entry: &Entry, source: u64| {
        let found = known.get(source as usize);
        found.is_some_and(|found| (found.tokens, found.targets) == (entry.tokens, entry.targets))
    };
    for entry in new {
        let source = wanted.get(&entry.content_id).copied().flatten();
        entry.source = source.filter(|&source| same(entry, source));
    }
}

/// Whether the sequence at `index` has yet to take its rows from a frame that is there.
pub(super) fn is_to_take(entry: &Entry, index: u64, contains: impl Fn(u64) -> bool) -> bool {
    entry.source.is_some_and(&contains) && !contains(index)
}

/// Gives the sequences of the shards that are `mine` the rows of frames that are there; how many.
///
/// # Errors
/// `Io`; `ShuttingDown` once `stopped` says so: what was done is kept.
pub(super) fn take_rows(
    plan: &Plan,
    store: &dyn BlockStore,
    mine: impl Fn(u32) -> bool,
    stopped: &dyn Fn() -> bool,
) -> Result<u64> {
    let contains = |index| store.contains(index);
    let places = (0..).zip(plan.entries()).filter(|&(index, entry)| {
        is_to_take(entry, index, contains)
            && mine(store.shard_of(index))
            && plan.sequence(index as usize).is_some()
    });
    let places: Vec<(u64, &Entry)> = places.collect();
    if places.is_empty() {
        return Ok(0);
    }
    let tokens = places.iter().map(|(_, entry)| u64::from(entry.tokens));
    let mut progress = Progress::of(WORDS, places.len() as u64, tokens.sum());
    let mut taken = 0;
    for (index, entry) in places {
        if stopped() {
            store.flush()?;
            return Err(Error::ShuttingDown);
        }
        taken += u64::from(take(plan, store, index, entry.source.unwrap_or_default())?);
        progress.advance(1, u64::from(entry.tokens));
    }
    store.flush()?;
    Ok(taken)
}

/// Gives the sequence at `index` the rows of the frame at `source`; false where these cannot be had, and are to be computed.
fn take(plan: &Plan, store: &dyn BlockStore, index: u64, source: u64) -> Result<bool> {
    let Some(block) = store.get(source)? else {
        tracing::warn!("frame {source} is damaged, so the rows of sequence {index} are computed");
        return Ok(false);
    };
    let place = (index, store.shard_of(index));
    match frames::move_rows(plan, place, &block.frame, (source, block.shard)) {
        Ok(frame) => store.put(index, &frame).map(|()| true),
        // Two contents of one name, which nobody will ever see.
        Err(error) => {
            tracing::warn!(
                "sequence {index} is computed, since frame {source} is of another: {error}"
            );
            Ok(false)
        }
    }
}

#[cfg(test)]
#[path = "taken_tests.rs"]
mod tests;
