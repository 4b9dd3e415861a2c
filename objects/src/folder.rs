//! Provides the folder of this machine that belongs to an address: what is copied from it and what is not in it yet.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::address::endpoint;

/// Names the folder above all of them.
pub(crate) const PLACE: &str = "OT_DISTILL_OBJECTS";
const FOLDER: &str = "ot-distill/objects";
/// Digits of a digest where it is a part of a name.
const DIGITS: usize = 16;

/// What stands in a name for something longer: the first digits of its blake3.
pub fn short_digest(of: &[u8]) -> String {
    let mut digest = blake3::hash(of).to_hex().to_string();
    digest.truncate(DIGITS);
    digest
}

/// The folder for the address `path` at the server that the environment names: below `OT_DISTILL_OBJECTS`, or below `XDG_CACHE_HOME`
/// or `~/.cache`, or in the system's folder for temporary files.
pub fn folder_of(path: &Path) -> PathBuf {
    let set = |name: &str| {
        let path = PathBuf::from(env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let cache = || {
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
        Some(cache.join(FOLDER))
    };
    let asked = env::var_os(PLACE).filter(|place| !place.is_empty());
    let above = asked.map(PathBuf::from).or_else(cache);
    let above = above.unwrap_or_else(|| env::temp_dir().join(FOLDER));
    let address = path.to_string_lossy();
    let mut address = address.trim_end_matches('/').to_owned();
    if let Some(endpoint) = endpoint(path) {
        address += &format!("\n{endpoint}");
    }
    above.join(short_digest(address.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_its_folder_with_or_without_a_slash_at_its_end() {
        let folder = |path: &str| folder_of(Path::new(path));
        assert_eq!(folder("s3://b/cache"), folder("s3://b/cache/"));
        assert_ne!(folder("s3://b/cache"), folder("s3://b/other"));
    }
}
