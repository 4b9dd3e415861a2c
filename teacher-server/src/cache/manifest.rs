//! Provides manifests: which shards of a cache in object storage lie in other caches, so that a merge copies nothing.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
};

use distill_proto::v1;

use super::{contents::sealed_name, files::Files, sealed, storage::Storage};
use crate::Result;

/// Directory of the manifests; each merge adds one.
pub const MANIFESTS: &str = "manifests";

/// Where shards lie, by the names that they have there.
pub type Elsewhere = Vec<(PathBuf, HashSet<String>)>;

/// What the manifests of a cache say.
///
/// # Errors
/// `Cache` where one is damaged; `Io`.
pub fn read(files: &dyn Files, storage: &Storage) -> Result<Elsewhere> {
    let mut elsewhere = Elsewhere::new();
    for number in numbers(files)? {
        let name = name(number);
        let manifest = sealed::get::<v1::CacheManifest>(storage, &name)?;
        for part in manifest.unwrap_or_default().parts {
            let shards = part.shards.into_iter().map(sealed_name).collect();
            elsewhere.push((part.cache.into(), shards));
        }
    }
    Ok(elsewhere)
}

fn name(number: u32) -> String {
    format!("{MANIFESTS}/{number:05}")
}

/// The numbers of those that are there, in order.
fn numbers(files: &dyn Files) -> Result<Vec<u32>> {
    let listed = files.list(MANIFESTS)?.into_iter();
    let numbers = listed.filter_map(|name| name.parse().ok());
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Adds a manifest that says which shards lie in which cache; none where there are none.
///
/// # Errors
/// `Cache` where another process adds one at the same time; `Io`.
pub fn put(
    files: &dyn Files,
    storage: &Storage,
    shards: BTreeMap<PathBuf, Vec<u32>>,
) -> Result<()> {
    if shards.is_empty() {
        return Ok(());
    }
    let parts = shards.into_iter().map(|(cache, shards)| {
        let cache = cache.to_string_lossy().into_owned();
        v1::CacheManifestPart { cache, shards }
    });
    let manifest = v1::CacheManifest {
        parts: parts.collect(),
    };
    let number = numbers(files)?.last().map_or(0, |last| last + 1);
    sealed::put(storage, &name(number), &manifest)
}
