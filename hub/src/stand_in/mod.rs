//! Provides a hub on loopback for tests: the API, files of the repository itself, and storage at another address; what it gives is in
//! `download`, what it takes in `upload`.

mod download;
mod http;
mod upload;

use std::{
    collections::BTreeMap,
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use sha1::Sha1;
use sha2::Digest;

use self::http::{Answer, Request};

/// What goes wrong on purpose.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The next answers of storage end after so many bytes, one after the other.
    pub cut_after: Vec<usize>,
    /// Storage sends one bit wrong.
    pub flip: bool,
    /// Storage sends everything whatever is asked for.
    pub ignore_range: bool,
    /// Storage says so many times that an address has expired.
    pub expired: usize,
    /// Only with this token are files given.
    pub gated: Option<String>,
    /// Every answer is 503.
    pub down: bool,
    /// Only from this token is anything taken; of another one nothing is known.
    pub writer: Option<String>,
    /// Nobody may write.
    pub forbidden: bool,
    /// The next so many questions of an upload come too fast.
    pub busy: usize,
    /// Every repository has this name now.
    pub moved: Option<String>,
    /// Storage wants files in parts of so many bytes.
    pub part_bytes: Option<u64>,
    /// Storage breaks off the next files after so many bytes, one after the other.
    pub break_after: Vec<usize>,
}

/// A server that ends with the process.
pub struct StandIn {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    repositories: BTreeMap<String, Repository>,
    blobs: BTreeMap<String, Vec<u8>>,
    /// Of files that are not whole yet.
    parts: BTreeMap<String, BTreeMap<usize, Vec<u8>>>,
    faults: Faults,
    requests: Vec<String>,
    endpoint: String,
    storage: String,
}

#[derive(Default)]
struct Repository {
    commit: String,
    private: bool,
    files: BTreeMap<String, Vec<u8>>,
}

impl Repository {
    /// A commit's id, which other files would not have.
    fn digest(&self) -> String {
        let mut digest = Sha1::new();
        for (name, bytes) in &self.files {
            digest.update(name);
            digest.update(bytes);
        }
        hex::encode(digest.finalize())
    }
}

impl StandIn {
    /// Starts the hub and, on another port, its storage.
    ///
    /// # Errors
    /// No free port on loopback.
    pub fn start() -> io::Result<Self> {
        let (hub, storage) = (
            TcpListener::bind("127.0.0.1:0")?,
            TcpListener::bind("127.0.0.1:0")?,
        );
        let address = |at: SocketAddr| format!("http://{at}");
        let endpoint = address(hub.local_addr()?);
        let state = State {
            endpoint: endpoint.clone(),
            storage: address(storage.local_addr()?),
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        serve(hub, state.clone(), State::answer_hub);
        serve(storage, state.clone(), State::answer_storage);
        Ok(Self { endpoint, state })
    }

    /// What to set `HF_ENDPOINT` to.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Serves these files as the branch `main` of `repo`; what was there before is replaced. Returns the commit.
    pub fn put(&self, repo: &str, files: &[(&str, &[u8])]) -> String {
        let files = files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()));
        let mut repository = Repository {
            files: files.collect(),
            ..Repository::default()
        };
        repository.commit = repository.digest();
        let commit = repository.commit.clone();
        self.state()
            .repositories
            .insert(repo.to_owned(), repository);
        commit
    }

    /// Serves a directory's files as `repo`.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn put_directory(&self, repo: &str, directory: &Path) -> io::Result<String> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if let (true, Some(name)) = (path.is_file(), path.file_name()) {
                files.push((name.to_string_lossy().into_owned(), fs::read(&path)?));
            }
        }
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
            .collect();
        Ok(self.put(repo, &files))
    }

    /// The files of a repository by name, and whether it is private; `None` where there is none.
    pub fn get(&self, repo: &str) -> Option<(BTreeMap<String, Vec<u8>>, bool)> {
        let state = self.state();
        let repository = state.repositories.get(repo)?;
        Some((repository.files.clone(), repository.private))
    }

    /// From now on goes wrong what this says.
    pub fn fail(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// The requests since the last call: method, path, position asked for, whether a token came along.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    answer: fn(&mut State, &Request) -> Answer,
) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = state.clone();
            // A client that goes away is none of the server's business.
            thread::spawn(move || converse(stream, &state, answer).ok());
        }
    });
}

fn converse(
    mut stream: TcpStream,
    state: &Mutex<State>,
    answer: fn(&mut State, &Request) -> Answer,
) -> io::Result<()> {
    let locked = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let cut = |request: &Request| locked().note(request);
    let Some(request) = Request::read(&stream, cut)? else {
        return Ok(());
    };
    let answer = answer(&mut locked(), &request);
    answer.write(&mut stream, request.method != "HEAD")
}

impl State {
    /// Notes a request; after how many bytes of its body the connection is to break.
    fn note(&mut self, request: &Request) -> Option<usize> {
        let Request {
            method,
            path,
            range,
            authorization,
            ..
        } = request;
        let range = range
            .map(|from| format!(" from {from}"))
            .unwrap_or_default();
        let token = if authorization.is_some() {
            " with token"
        } else {
            ""
        };
        self.requests.push(format!("{method} {path}{range}{token}"));
        let breaks = method == "PUT" && !self.faults.break_after.is_empty();
        breaks.then(|| self.faults.break_after.remove(0))
    }
}
