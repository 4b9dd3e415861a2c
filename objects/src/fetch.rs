//! Provides objects as files of this machine, for readers of files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use distill_program::{FileError, files};
use object_store::path::Path as Key;

use crate::{Result, Store, folder::short_digest, folder_of, store::Version};

/// The file of this machine that holds the object at `address`, or the folder that holds the objects right below it; what was
/// fetched before and is as it was is not fetched again. Ends early with `Interrupted` once `stopped` says so.
///
/// # Errors
/// `NotFound`; the service refuses, or cannot be reached; the disk.
pub fn fetched(address: &Path, stopped: &dyn Fn() -> bool) -> Result<PathBuf> {
    let store = Store::open(address)?;
    let names = store.list("")?;
    if names.is_empty() {
        return fetched_one(address, stopped);
    }
    let versions: Vec<(String, Version)> = names
        .into_iter()
        .map(|name| Ok((name.clone(), store.known_version(&name)?)))
        .collect::<Result<_>>()?;
    // One folder for one state of all of them: a reader of folders must find these and no others.
    let state = short_digest(format!("{versions:?}").as_bytes());
    let folder = folder_of(address).join("folders").join(state);
    for (name, version) in &versions {
        let file = fetch(
            &store,
            name,
            version,
            &folder_of(address).join("files"),
            stopped,
        )?;
        files::create_directory(&folder)?;
        let link = folder.join(name);
        let is_whole = |about: fs::Metadata| about.len() == version.bytes;
        if !link.metadata().is_ok_and(is_whole) {
            files::if_there(files::remove(&link))?;
            fs::hard_link(&file, &link).map_err(FileError::at("write", &link))?;
        }
    }
    Ok(folder)
}

fn fetched_one(address: &Path, stopped: &dyn Fn() -> bool) -> Result<PathBuf> {
    // As an address has it, so `%20` is a space.
    let name = address.file_name().and_then(|name| name.to_str());
    let name = name.and_then(|name| Key::from_url_path(name).ok());
    if let (Some(above), Some(name)) = (parent(address), name) {
        let store = Store::open(&above)?;
        if let Some(version) = store.version(name.as_ref())? {
            let folder = folder_of(&above).join("files");
            return fetch(&store, name.as_ref(), &version, &folder, stopped);
        }
    }
    let missing = std::io::Error::new(
        std::io::ErrorKind::NotFound,
        "there is no such object, and none below it",
    );
    Err(FileError::at("read", address)(missing))
}

/// Fetches one object into a folder of its state below `folder`.
fn fetch(
    store: &Store,
    name: &str,
    version: &Version,
    folder: &Path,
    stopped: &dyn Fn() -> bool,
) -> Result<PathBuf> {
    let folder = folder.join(version.digest(name));
    let path = folder.join(name);
    if path
        .metadata()
        .is_ok_and(|found| found.len() == version.bytes)
    {
        return Ok(path);
    }
    store.download(name, &path, stopped)?;
    Ok(path)
}

/// The address above; `None` where there is none.
fn parent(address: &Path) -> Option<PathBuf> {
    let text = address.to_str()?.trim_end_matches('/');
    let (above, _) = text.rsplit_once('/')?;
    let is_whole = above
        .split_once("://")
        .is_some_and(|(scheme, rest)| scheme == "file" || !rest.is_empty());
    is_whole.then(|| PathBuf::from(above))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_and_a_folder_of_them_become_files_and_are_fetched_once() {
        let directory = tempfile::tempdir().unwrap();
        let objects = directory.path().join("corpus");
        let address = |name: &str| PathBuf::from(format!("file://{}{name}", objects.display()));
        let store = Store::open(&address("")).unwrap();
        store.put_if_absent("a.jsonl", b"first".to_vec()).unwrap();
        store.put_if_absent("b.jsonl", b"second".to_vec()).unwrap();
        for name in ["\u{6570}\u{636e}.jsonl", "a~[b] #1.jsonl", "50%.jsonl"] {
            let store = Store::open(&address("/odd")).unwrap();
            store.put_if_absent(name, b"text".to_vec()).unwrap();
            let all = fetched(&address("/odd"), &|| false).unwrap();
            assert_eq!(fs::read(all.join(name)).unwrap(), b"text", "{name}");
        }
        let named = fetched(&address("/odd/a~[b]%20%231.jsonl"), &|| false).unwrap();
        assert_eq!(fs::read(&named).unwrap(), b"text");
        let one = fetched(&address("/a.jsonl"), &|| false).unwrap();
        assert_eq!(fs::read(&one).unwrap(), b"first");
        assert_eq!(one.file_name().unwrap(), "a.jsonl");
        assert_eq!(fetched(&address("/a.jsonl"), &|| true).unwrap(), one);
        let all = fetched(&address(""), &|| false).unwrap();
        assert_eq!(files::list(&all).unwrap().len(), 2);
        // A copy that was cut is mended, in both places.
        fs::write(all.join("b.jsonl"), b"s").unwrap();
        assert_eq!(fetched(&address(""), &|| false).unwrap(), all);
        assert_eq!(fs::read(all.join("b.jsonl")).unwrap(), b"second");
        store.replace("b.jsonl", b"changed".to_vec()).unwrap();
        let changed = fetched(&address(""), &|| false).unwrap();
        assert_eq!(fs::read(changed.join("b.jsonl")).unwrap(), b"changed");
        assert_eq!(fs::read(changed.join("a.jsonl")).unwrap(), b"first");
        let none = fetched(&address("/none"), &|| false).unwrap_err();
        assert!(none.is_missing(), "{none}");
        store.put_if_absent("c.jsonl", b"third".to_vec()).unwrap();
        let stopped = fetched(&address("/c.jsonl"), &|| true).unwrap_err();
        assert_eq!(stopped.reason.kind(), std::io::ErrorKind::Interrupted);
    }

    #[test]
    fn the_address_above_ends_at_the_bucket() {
        let above = |address: &str| parent(Path::new(address));
        assert_eq!(above("s3://b/x/y"), Some("s3://b/x".into()));
        assert_eq!(above("s3://b/x/"), Some("s3://b".into()));
        assert_eq!(above("s3://b"), None);
        assert_eq!(above("file:///x"), Some("file://".into()));
    }
}
