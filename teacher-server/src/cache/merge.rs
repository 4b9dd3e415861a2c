//! Provides the merge of caches that share one plan, each with some of its shards, as several machines make them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    Access, Cache, Contents, HEADER, MEMBERS, SEGMENTS,
    contents::sealed_name,
    files::Files,
    manifest,
    matrices::{self, BASIS, PROJECTION, VOCABULARY, basis_name},
    members, place, sealed, segment_name,
    storage::Storage,
};
use crate::{Error, Result};

/// What came together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merged {
    /// Shards that were copied.
    pub copied: u64,
    /// Shards that stay where they are, in object storage, and are listed.
    pub listed: u64,
    /// Shards that are sealed now.
    pub sealed: u64,
    /// Shards of the plan.
    pub shards: u64,
    /// Whether all inputs were gone through.
    pub complete: bool,
}

/// Copies every sealed shard of `inputs` into the cache in `out`, making it where it is missing. Each is checked before. Between
/// addresses of object storage nothing is copied: a manifest says where each shard lies, and its frames are checked when read. When `stopped` says so, what was copied is kept and the same merge goes on.
///
/// # Errors
/// `Cache` where the inputs' plans differ, before anything is made, or `out` is another one; `Damaged`; `Io`.
pub fn merge(out: &Path, inputs: &[PathBuf], stopped: &dyn Fn() -> bool) -> Result<Merged> {
    let inputs = inputs.iter().map(|path| Cache::find(path, Access::Read));
    let inputs = inputs.collect::<Result<Vec<Cache>>>()?;
    let Some(first) = inputs.first() else {
        return Err(Error::config("input", "name the caches to merge"));
    };
    for input in &inputs {
        check_same(first, input)?;
    }
    let (files, lock) = place::open(out, Access::Write)?;
    let storage = Storage::new(files.clone());
    storage.clean()?;
    if storage.length(HEADER)?.is_none() {
        copy_plan(first, &storage, files.as_ref())?;
    }
    let merged = Cache::over(files.clone(), out, Access::Write, lock)?;
    let gone = || Error::Internal("the header that was just copied is not there".into());
    let merged = merged.ok_or_else(gone)?;
    check_same(&merged, first)?;
    let mut elsewhere = BTreeMap::new();
    let done = copy_shards(&merged, &inputs, &mut elsewhere, stopped)?;
    manifest::put(files.as_ref(), &storage, elsewhere)?;
    Ok(done)
}

/// Copies everything but the shards; the header comes last.
fn copy_plan(from: &Cache, to: &Storage, files: &dyn Files) -> Result<()> {
    matrices::remove_leftovers(files)?;
    let pieces = (0..from.header.basis_pieces).map(basis_name);
    let segments = from
        .segments
        .iter()
        .map(|segment| segment_name(segment.number));
    let single = [VOCABULARY, PROJECTION].map(str::to_owned);
    let latest = members::latest(from.files.as_ref(), &from.storage)?;
    let members = latest.map(|(number, _)| members::name(number));
    let names = single
        .into_iter()
        .chain(pieces)
        .chain(segments)
        .chain(members);
    for name in names.chain([HEADER.to_owned()]) {
        if let Some(bytes) = sealed::get_bytes(&from.storage, &name)? {
            sealed::put_bytes(to, &name, bytes)?;
        }
    }
    Ok(())
}

/// Refuses caches whose frames could not stand side by side.
fn check_same(merged: &Cache, input: &Cache) -> Result<()> {
    let differs = if merged.plan != input.plan {
        "plans"
    } else if merged.segments != input.segments {
        SEGMENTS
    } else if merged.members != input.members {
        MEMBERS
    } else if merged.header.basis_pieces != input.header.basis_pieces {
        BASIS
    } else {
        return Ok(());
    };
    Err(Error::cache(
        &input.path,
        format!(
            "its {differs} are not those of {}: merge caches of one corpus and the same settings",
            merged.path.display(),
        ),
    ))
}

/// Copies what is missing; of one cache in object storage into another it is noted in `elsewhere` where a shard lies.
fn copy_shards(
    merged: &Cache,
    inputs: &[Cache],
    elsewhere: &mut BTreeMap<PathBuf, Vec<u32>>,
    stopped: &dyn Fn() -> bool,
) -> Result<Merged> {
    let target = merged.contents();
    let sources = inputs.iter().map(|input| (input, input.contents()));
    let sources: Vec<(&Cache, Contents)> = sources.collect();
    let mut done = Merged {
        shards: target.shards.len() as u64,
        ..Merged::default()
    };
    for &shard in target.shards.iter() {
        if stopped() {
            return Ok(done);
        }
        if target.sealed_header(shard)?.is_some() {
            done.sealed += 1;
            continue;
        }
        for (input, source) in &sources {
            let Some(header) = source.sealed_header(shard)? else {
                continue;
            };
            done.sealed += 1;
            if merged.is_shared() && input.is_shared() {
                // Which may be in a cache that the input lists.
                let name = sealed_name(shard.number);
                let place = source.storage.path(&name);
                let above = place.ancestors().nth(Path::new(&name).components().count());
                let cache = above.unwrap_or(input.path()).to_owned();
                elsewhere.entry(cache).or_default().push(shard.number);
                done.listed += 1;
                break;
            }
            let mut bytes = header.encode();
            for position in 0..shard.count {
                bytes.extend(source.sealed_frame(&header, position)?);
            }
            target
                .storage
                .put_if_absent(&sealed_name(shard.number), &bytes)?;
            done.copied += 1;
            break;
        }
    }
    done.complete = true;
    Ok(done)
}
