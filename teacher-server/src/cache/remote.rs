//! Provides the files of a cache in object storage: what is sealed lies there, what is being made on this machine.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use distill_objects::{Copies, Store, folder_of, short_digest};
use distill_program::{
    FileError,
    lock::{Attempt, Lock},
};

use super::{
    LOCK,
    files::{Files, LocalFiles},
    manifest,
    partial::PARTIAL,
    storage::{Storage, TEMPORARY},
};
use crate::{Error, Result};

/// Objects that say of a shard which other cache it was damaged in, so that it is made anew here.
const HIDDEN: &str = "hidden";
/// Below an address' folder: what is copied of it.
const COPIES: &str = "copies";
/// The same: what a process has made of it that is not whole yet; one for each process at a time.
const WRITER: &str = "writer";
/// Processes of this machine that write to one cache.
const WRITERS_MAX: usize = 4096;

/// Any number of processes may write: a sealed object is put where its name is free. Partial shards are this machine's.
pub struct RemoteFiles {
    sealed: Objects,
    /// Shards that lie in other caches, unless they are in this one as well.
    elsewhere: Vec<(HashSet<String>, Objects)>,
    /// Which of these a shard was found in.
    found: Mutex<HashMap<String, usize>>,
    /// Names below [`HIDDEN`]: what is not looked for there any more.
    hidden: Mutex<HashSet<String>>,
    /// None where nothing is written.
    own: Option<LocalFiles>,
}

/// The objects of one address.
#[derive(Clone)]
struct Objects {
    store: Store,
    copies: Arc<Copies>,
}

impl Objects {
    fn open(path: &Path) -> Result<Self> {
        let store = Store::open(path)?;
        let copies = Copies::new(store.clone(), &folder_of(path).join(COPIES))?;
        Ok(Self {
            store,
            copies: Arc::new(copies),
        })
    }
}

impl RemoteFiles {
    /// To read what is sealed at the address `path`.
    ///
    /// # Errors
    /// An address without meaning; the disk that copies lie on.
    pub fn reading(path: &Path) -> Result<Self> {
        let sealed = Objects::open(path)?;
        let alone = |elsewhere, hidden| Self {
            sealed: sealed.clone(),
            elsewhere,
            found: Mutex::default(),
            hidden: Mutex::new(hidden),
            own: None,
        };
        let files: Arc<dyn Files> = Arc::new(alone(Vec::new(), HashSet::new()));
        let listed = manifest::read(files.as_ref(), &Storage::new(files.clone()))?;
        if listed.is_empty() {
            return Ok(alone(Vec::new(), HashSet::new()));
        }
        let elsewhere = listed.into_iter();
        let elsewhere = elsewhere.map(|(path, shards)| Ok((shards, Objects::open(&path)?)));
        let hidden = files.list(HIDDEN)?.into_iter().collect();
        Ok(alone(elsewhere.collect::<Result<_>>()?, hidden))
    }

    /// To write as well; what an earlier process of this machine began is gone on with. The lock keeps its folder.
    ///
    /// # Errors
    /// As [`RemoteFiles::reading`].
    pub fn writing(path: &Path) -> Result<(Self, Lock)> {
        let folder = folder_of(path);
        for writer in 0..WRITERS_MAX {
            let own = folder.join(format!("{WRITER}-{writer}"));
            distill_program::files::create_directory(&own)?;
            if let Attempt::Taken(lock) = Lock::take(&own.join(LOCK))? {
                let files = Self {
                    own: Some(LocalFiles::new(&own)),
                    ..Self::reading(path)?
                };
                return Ok((files, lock));
            }
        }
        let reason = format!("{WRITERS_MAX} processes of this machine write to it");
        Err(Error::cache(path, reason))
    }

    /// The files of this machine, where `name` is of what is being made.
    fn own(&self, name: &str) -> Own<'_> {
        let first = name.split('/').next().unwrap_or_default();
        match (first == TEMPORARY || first == PARTIAL, &self.own) {
            (false, _) => Own::Sealed,
            (true, Some(files)) => Own::Here(files),
            (true, None) => Own::Nothing,
        }
    }

    /// Changes what is being made.
    fn change(&self, name: &str, change: impl FnOnce(&LocalFiles) -> Result<()>) -> Result<()> {
        match self.own(name) {
            Own::Here(files) => change(files),
            Own::Sealed | Own::Nothing => Err(Error::Internal(format!(
                "{} is never changed",
                self.path(name).display()
            ))),
        }
    }

    /// Where a sealed object lies, and its bytes.
    fn look(&self, name: &str) -> Result<Option<(&Objects, u64)>> {
        if let Some(bytes) = self.sealed.store.length(name)? {
            self.found().remove(name);
            return Ok(Some((&self.sealed, bytes)));
        }
        for (at, (shards, objects)) in self.elsewhere.iter().enumerate() {
            if shards.contains(name)
                && !self.hidden().contains(&hidden_name(name, objects))
                && let Some(bytes) = objects.store.length(name)?
            {
                self.found().insert(name.to_owned(), at);
                return Ok(Some((objects, bytes)));
            }
        }
        Ok(None)
    }

    /// Where a sealed object was found.
    fn objects(&self, name: &str) -> &Objects {
        let at = self.found().get(name).copied();
        let found = at.and_then(|at| self.elsewhere.get(at));
        found.map_or(&self.sealed, |(_, objects)| objects)
    }

    fn found(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hidden(&self) -> MutexGuard<'_, HashSet<String>> {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nothing(&self, name: &str) -> Error {
        FileError::at("read", &self.path(name))(io::ErrorKind::NotFound.into()).into()
    }
}

/// The name of what hides the shard `name` of another cache.
fn hidden_name(name: &str, of: &Objects) -> String {
    let shard = name.rsplit('/').next().unwrap_or_default();
    let address = of.store.path("");
    format!(
        "{shard}-{}",
        short_digest(address.as_os_str().as_encoded_bytes())
    )
}

/// Where a name is.
enum Own<'a> {
    /// With all that is sealed.
    Sealed,
    /// On this machine.
    Here(&'a LocalFiles),
    /// Nowhere, as nothing is written.
    Nothing,
}

impl Files for RemoteFiles {
    fn list(&self, directory: &str) -> Result<Vec<String>> {
        match self.own(directory) {
            Own::Sealed => Ok(self.sealed.store.list(directory)?),
            Own::Here(files) => files.list(directory),
            Own::Nothing => Ok(Vec::new()),
        }
    }

    fn length(&self, name: &str) -> Result<Option<u64>> {
        match self.own(name) {
            Own::Sealed => Ok(self.look(name)?.map(|(_, bytes)| bytes)),
            Own::Here(files) => files.length(name),
            Own::Nothing => Ok(None),
        }
    }

    fn read(&self, name: &str, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        match self.own(name) {
            Own::Sealed => Ok(self.objects(name).copies.read(name, offset, bytes)?),
            Own::Here(files) => files.read(name, offset, bytes),
            Own::Nothing => Err(self.nothing(name)),
        }
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.change(name, |files| files.write_at(name, offset, bytes))
    }

    fn truncate(&self, name: &str, bytes: u64) -> Result<()> {
        self.change(name, |files| files.truncate(name, bytes))
    }

    fn sync(&self, name: &str) -> Result<()> {
        self.change(name, |files| files.sync(name))
    }

    fn rename_if_absent(&self, from: &str, to: &str) -> Result<bool> {
        let bytes = self.length(from)?.ok_or_else(|| self.nothing(from))?;
        // A shard's bytes were in memory when it was made.
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let bytes = match self.own(from) {
            Own::Sealed => self.objects(from).store.read(from, 0, bytes)?,
            Own::Here(files) => files.read(from, 0, bytes)?,
            Own::Nothing => return Err(self.nothing(from)),
        };
        let put = self.sealed.store.put_if_absent(to, bytes)?;
        if put {
            self.found().remove(to);
            self.remove(from)?;
        }
        Ok(put)
    }

    fn remove(&self, name: &str) -> Result<()> {
        match self.own(name) {
            Own::Sealed => {
                let at = self.found().remove(name);
                if let Some((_, objects)) = at.and_then(|at| self.elsewhere.get(at)) {
                    // It is another cache's, and stays there.
                    let hidden = hidden_name(name, objects);
                    let store = &self.sealed.store;
                    store.put_if_absent(&format!("{HIDDEN}/{hidden}"), Vec::new())?;
                    self.hidden().insert(hidden);
                }
                Ok(self.sealed.store.remove(name)?)
            }
            Own::Here(files) => files.remove(name),
            Own::Nothing => Ok(()),
        }
    }

    fn create_directory(&self, name: &str) -> Result<()> {
        match self.own(name) {
            Own::Here(files) => files.create_directory(name),
            Own::Sealed | Own::Nothing => Ok(()),
        }
    }

    fn sync_directory(&self, name: &str) -> Result<()> {
        match self.own(name) {
            Own::Here(files) => files.sync_directory(name),
            Own::Sealed | Own::Nothing => Ok(()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        match self.own(name) {
            Own::Here(files) => files.path(name),
            Own::Sealed | Own::Nothing => self.objects(name).store.path(name),
        }
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn forget(&self, name: &str) {
        self.sealed.copies.forget(name);
        for (shards, objects) in &self.elsewhere {
            if shards.contains(name) {
                objects.copies.forget(name);
            }
        }
    }
}
