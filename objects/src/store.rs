//! Provides the store behind an address: its objects by name, each operation whole or not at all.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use distill_program::{FileError, shutdown::has_signal_come};
use metrics::counter;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path as Key,
};
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;

use crate::{
    Result,
    address::{RETRY_TIME, reach},
    folder::short_digest,
};

/// Attempts at a put that is refused though nothing is there, with a longer pause after each.
const ATTEMPTS_MAX: u32 = 8;
const PAUSE: Duration = Duration::from_millis(100);

/// Between two looks at what a request is waited for with: whether it takes long, and whether the process is to stop.
const LOOK: Duration = Duration::from_millis(200);
/// A request without an answer for so long is told.
const PATIENCE: Duration = Duration::from_secs(5);
/// For so long a request may still go on in a process that is to stop.
const GRACE: Duration = Duration::from_secs(20);
/// Whether it was told that storage does not answer; until it does again.
static IS_AWAY: AtomicBool = AtomicBool::new(false);

/// Whoever calls may be in a runtime of its own, which must not be blocked in.
static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("objects")
        .enable_all()
        .build()
});

/// Objects below one address, by names like `shards/000007`. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    service: Arc<dyn ObjectStore>,
    above: Key,
    shown: PathBuf,
    /// What `length` found, by name: with it a range is read of the same object and no other.
    versions: Arc<Mutex<HashMap<String, Version>>>,
}

/// An object as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub bytes: u64,
    /// Changes with the content; `None` where the service has none.
    pub tag: Option<String>,
}

impl Version {
    /// What stands for the object `name` in this state in the name of a copy.
    pub fn digest(&self, name: &str) -> String {
        short_digest(format!("{name}\n{self:?}").as_bytes())
    }
}

impl Store {
    /// The objects below the address `path`. Nothing is asked yet.
    ///
    /// # Errors
    /// An address without meaning, or one whose service lacks a setting.
    pub fn open(path: &Path) -> Result<Self> {
        let (service, above) = reach(path)?;
        Ok(Self {
            service,
            above,
            shown: path.to_owned(),
            versions: Arc::default(),
        })
    }

    /// Names of the objects of a folder, without it; empty where there is none.
    ///
    /// # Errors
    /// The service refuses, or cannot be reached.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let (service, key) = (self.service.clone(), self.key(folder));
        let listed = self.wait("list", folder, async move {
            service.list_with_delimiter(Some(&key)).await
        });
        let found = if_there(listed)?.map_or_else(Vec::new, |found| found.objects);
        let names = found.iter().filter_map(|object| object.location.filename());
        Ok(names.map(str::to_owned).collect())
    }

    /// Names of all objects with their bytes, those of folders in folders too.
    ///
    /// # Errors
    /// The service refuses, or cannot be reached.
    pub fn list_all(&self) -> Result<BTreeMap<String, u64>> {
        let (service, above) = (self.service.clone(), self.above.clone());
        let listed = self.wait("list", "", async move {
            let mut found = service.list(Some(&above));
            let mut names = BTreeMap::new();
            while let Some(object) = found.next().await {
                let object = object?;
                if let Some(parts) = object.location.prefix_match(&above) {
                    let parts: Vec<_> = parts.map(|part| part.as_ref().to_owned()).collect();
                    names.insert(parts.join("/"), object.size);
                }
            }
            Ok(names)
        });
        Ok(if_there(listed)?.unwrap_or_default())
    }

    /// Bytes of an object; `None` where there is none.
    ///
    /// # Errors
    /// The service refuses, or cannot be reached.
    pub fn length(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.version(name)?.map(|version| version.bytes))
    }

    /// An object as it is now.
    pub(crate) fn version(&self, name: &str) -> Result<Option<Version>> {
        let (service, key) = (self.service.clone(), self.key(name));
        let found = self.wait("read", name, async move { service.head(&key).await });
        let version = if_there(found)?.map(|found| Version {
            bytes: found.size,
            tag: found.e_tag,
        });
        match &version {
            Some(version) => self.versions().insert(name.to_owned(), version.clone()),
            None => self.versions().remove(name),
        };
        Ok(version)
    }

    /// An object as it was found last, or is now.
    ///
    /// # Errors
    /// `NotFound`; the service refuses, or cannot be reached.
    pub(crate) fn known_version(&self, name: &str) -> Result<Version> {
        if let Some(version) = self.versions().get(name) {
            return Ok(version.clone());
        }
        let gone = || io::Error::new(io::ErrorKind::NotFound, "there is no such object");
        let found = self.version(name)?;
        found.ok_or_else(|| FileError::at("read", &self.path(name))(gone()))
    }

    /// Looks at an object anew the next time.
    pub fn forget(&self, name: &str) {
        self.versions().remove(name);
    }

    /// `bytes` bytes from `offset` on.
    ///
    /// # Errors
    /// `NotFound`; `UnexpectedEof` where the object is shorter; the service refuses, or cannot be reached.
    pub fn read(&self, name: &str, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let version = self.known_version(name)?;
        let end = offset.checked_add(bytes as u64);
        if end.is_none_or(|end| end > version.bytes) {
            let short = format!("the object has {} bytes", version.bytes);
            let reason = io::Error::new(io::ErrorKind::UnexpectedEof, short);
            return Err(FileError::at("read", &self.path(name))(reason));
        }
        let (service, key) = (self.service.clone(), self.key(name));
        let options = GetOptions {
            range: Some(GetRange::Bounded(offset..offset + bytes as u64)),
            if_match: version.tag,
            ..GetOptions::default()
        };
        let read = self.wait("read", name, async move {
            service.get_opts(&key, options).await?.bytes().await
        });
        match read {
            Ok(read) if read.len() == bytes => {
                counter!("ot_distill_storage_read_bytes_total").increment(bytes as u64);
                Ok(read.into())
            }
            Ok(read) => {
                let reason = format!("{} of {bytes} bytes came", read.len());
                let reason = io::Error::new(io::ErrorKind::UnexpectedEof, reason);
                Err(FileError::at("read", &self.path(name))(reason))
            }
            Err(error) => {
                // It may have been replaced: whoever comes again reads it as it is then.
                self.forget(name);
                Err(error)
            }
        }
    }

    /// Makes an object of `bytes`, all of it at once; false where the name was taken, and then the object is as it was.
    ///
    /// # Errors
    /// The service refuses, or cannot be reached.
    pub fn put_if_absent(&self, name: &str, bytes: Vec<u8>) -> Result<bool> {
        let bytes = Bytes::from(bytes);
        for attempt in 1.. {
            // A put that another one is in the way of may be refused as one that comes second, and the other come to nothing: its
            // sender was cut off.
            if self.put(name, bytes.clone(), PutMode::Create)? {
                return Ok(true);
            }
            if attempt == ATTEMPTS_MAX || self.length(name)?.is_some() {
                break;
            }
            thread::sleep(attempt * PAUSE);
        }
        Ok(false)
    }

    /// Makes an object of `bytes`, in the place of one that may be there.
    ///
    /// # Errors
    /// The service refuses, or cannot be reached.
    pub fn replace(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.put(name, bytes.into(), PutMode::Overwrite).map(drop)
    }

    fn put(&self, name: &str, bytes: Bytes, mode: PutMode) -> Result<bool> {
        let (service, key) = (self.service.clone(), self.key(name));
        let sent = bytes.len() as u64;
        let options = PutOptions {
            mode,
            ..PutOptions::default()
        };
        let put = self.wait("write", name, async move {
            match service.put_opts(&key, bytes.into(), options).await {
                Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
                put => put.map(|_| true),
            }
        });
        self.forget(name);
        if put.is_ok() {
            wrote(sent);
        }
        put
    }

    /// Removes an object, where it is there.
    ///
    /// # Errors
    /// The service refuses, or cannot be reached.
    pub fn remove(&self, name: &str) -> Result<()> {
        let (service, key) = (self.service.clone(), self.key(name));
        let removed = self.wait("remove", name, async move { service.delete(&key).await });
        self.forget(name);
        if_there(removed).map(drop)
    }

    /// Where an object is, for messages.
    pub fn path(&self, name: &str) -> PathBuf {
        match name {
            "" => self.shown.clone(),
            name => self.shown.join(name),
        }
    }

    pub(crate) fn service(&self) -> &Arc<dyn ObjectStore> {
        &self.service
    }

    pub(crate) fn key(&self, name: &str) -> Key {
        // A name that was listed is taken as it is; whatever cannot be one is made into one that is not there.
        let name = Key::parse(name).unwrap_or_else(|_| Key::from(name));
        self.above.parts().chain(name.parts()).collect()
    }

    fn versions(&self) -> MutexGuard<'_, HashMap<String, Version>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs what speaks with the service and waits for it.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        action: &'static str,
        name: &str,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T> {
        let fail = |reason| FileError::at(action, &self.path(name))(reason);
        let runtime = RUNTIME
            .as_ref()
            .map_err(|error| fail(io::Error::new(error.kind(), error.to_string())))?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let request = runtime.spawn(async move {
            // Nobody waits for a caller that is gone.
            let _ = sender.send(work.await);
        });
        let (begun, mut stopping) = (Instant::now(), None);
        let done = loop {
            match receiver.recv_timeout(LOOK) {
                Ok(done) => break done,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(fail(io::Error::other(
                        "the client of the storage has ended",
                    )));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if begun.elapsed() > PATIENCE && !IS_AWAY.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "{}: storage has not answered for {} seconds; it is asked for {}",
                    self.path(name).display(),
                    PATIENCE.as_secs(),
                    RETRY_TIME.as_secs()
                );
            }
            let stopping = has_signal_come().then(|| *stopping.get_or_insert_with(Instant::now));
            if stopping.is_some_and(|since| since.elapsed() > GRACE) {
                request.abort();
                let reason = "storage does not answer, and this process was asked to stop";
                return Err(fail(io::Error::new(io::ErrorKind::Interrupted, reason)));
            }
        };
        if done.is_ok() {
            IS_AWAY.store(false, Ordering::Relaxed);
        }
        counter!("ot_distill_storage_requests_total", "action" => action).increment(1);
        done.map_err(|error| {
            let error = fail(explained(error));
            if !error.is_missing() {
                counter!("ot_distill_storage_failures_total", "action" => action).increment(1);
            }
            error
        })
    }
}

/// Bytes that were sent, whether the object could be made of them or its name was taken.
pub(crate) fn wrote(bytes: u64) {
    counter!("ot_distill_storage_written_bytes_total").increment(bytes);
}

/// What the system would say, with what to do where that is known.
fn explained(error: object_store::Error) -> io::Error {
    let error = io::Error::from(error);
    let text = error.to_string();
    // Where nothing names a key, the instance's own is asked for, at this address.
    let remedy = match () {
        () if text.contains("169.254.169.254") => {
            "no key is set and this machine has no role; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your service asks for"
        }
        () if text.contains("error sending request") => {
            "no server answers there: see the network, and AWS_ENDPOINT_URL where it is set"
        }
        () if text.contains("scheme is not allowed") => {
            "an endpoint without TLS has to be named http:// in AWS_ENDPOINT_URL"
        }
        () => return error,
    };
    io::Error::new(error.kind(), format!("{text}: {remedy}"))
}

/// `None` where there is nothing.
fn if_there<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Err(error) if error.is_missing() => Ok(None),
        found => found.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(directory: &Path) -> Store {
        Store::open(Path::new(&format!("file://{}", directory.display()))).unwrap()
    }

    #[test]
    fn operations_do_what_they_say() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory.path().join("cache"));
        assert_eq!(store.list("shards").unwrap(), Vec::<String>::new());
        assert_eq!(store.length("shards/1").unwrap(), None);
        assert!(store.put_if_absent("shards/1", b"hello".to_vec()).unwrap());
        assert!(!store.put_if_absent("shards/1", b"other".to_vec()).unwrap());
        assert_eq!(store.length("shards/1").unwrap(), Some(5));
        assert_eq!(store.read("shards/1", 1, 3).unwrap(), b"ell");
        let cut = store.read("shards/1", 3, 3).unwrap_err();
        assert_eq!(cut.reason.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(store.list("shards").unwrap(), ["1"]);
        assert_eq!(store.list("").unwrap(), Vec::<String>::new());
        let all = BTreeMap::from([("shards/1".to_owned(), 5)]);
        assert_eq!(store.list_all().unwrap(), all);
        store.replace("shards/1", b"another".to_vec()).unwrap();
        assert_eq!(store.read("shards/1", 0, 7).unwrap(), b"another");
        store.remove("shards/1").unwrap();
        store.remove("shards/1").unwrap();
        let gone = store.read("shards/1", 0, 1).unwrap_err();
        assert!(gone.is_missing());
        assert!(gone.to_string().contains("file://"), "{gone}");
    }

    #[test]
    fn of_ten_writers_of_one_name_one_is_first() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let won: usize = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..10u8)
                .map(|writer| {
                    let store = store.clone();
                    scope.spawn(move || store.put_if_absent("one", vec![writer; 1 << 16]).unwrap())
                })
                .collect();
            let won = writers.into_iter().map(|writer| writer.join().unwrap());
            won.filter(|&won| won).count()
        });
        assert_eq!(won, 1);
        let kept = store.read("one", 0, 1 << 16).unwrap();
        assert!(kept.iter().all(|&byte| byte == kept[0]));
    }
}
