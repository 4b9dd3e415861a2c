//! Provides a hub on loopback for tests: the API, files of the repository itself, and storage at another address.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

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
    faults: Faults,
    requests: Vec<String>,
    storage: String,
}

struct Repository {
    commit: String,
    files: BTreeMap<String, Vec<u8>>,
}

struct Request {
    method: String,
    path: String,
    range: Option<usize>,
    authorization: Option<String>,
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes of the body that are really sent.
    sent: usize,
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
        let files: BTreeMap<String, Vec<u8>> = files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))
            .collect();
        let mut digest = Sha1::new();
        for (name, bytes) in &files {
            digest.update(name);
            digest.update(bytes);
        }
        let commit = hex::encode(digest.finalize());
        let repository = Repository {
            commit: commit.clone(),
            files,
        };
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
    let request = Request::read(&mut stream)?;
    let answer = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let Request {
            method,
            path,
            range,
            authorization,
        } = &request;
        let range = range
            .map(|from| format!(" from {from}"))
            .unwrap_or_default();
        let token = if authorization.is_some() {
            " with token"
        } else {
            ""
        };
        state
            .requests
            .push(format!("{method} {path}{range}{token}"));
        answer(&mut state, &request)
    };
    write!(
        stream,
        "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    )?;
    for (name, value) in &answer.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    if request.method != "HEAD" {
        stream.write_all(answer.body.get(..answer.sent).unwrap_or(&answer.body))?;
    }
    stream.flush()
}

impl Request {
    fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut lines = BufReader::new(stream.take(1 << 16)).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let mut words = first.split(' ').map(str::to_owned);
        let mut request = Self {
            method: words.next().unwrap_or_default(),
            path: words.next().unwrap_or_default(),
            range: None,
            authorization: None,
        };
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "range" => {
                    let start = value
                        .strip_prefix("bytes=")
                        .and_then(|range| range.split('-').next());
                    request.range = start.and_then(|start| start.parse().ok());
                }
                "authorization" => request.authorization = Some(value.to_owned()),
                _ => {}
            }
        }
        Ok(request)
    }
}

impl Answer {
    fn new(status: &'static str, body: Vec<u8>) -> Self {
        let sent = body.len();
        Self {
            status,
            headers: Vec::new(),
            body,
            sent,
        }
    }

    fn error(status: &'static str, code: &str) -> Self {
        let headers = [
            ("X-Error-Code", code),
            ("X-Error-Message", "said by the stand-in"),
        ];
        headers
            .into_iter()
            .fold(Self::new(status, Vec::new()), |answer, (name, value)| {
                answer.with(name, value)
            })
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl State {
    fn answer_hub(&mut self, request: &Request) -> Answer {
        if self.faults.down {
            return Answer::error("503 Service Unavailable", "");
        }
        let path = request.path.trim_start_matches('/');
        if let Some((repo, revision)) = path
            .strip_prefix("api/models/")
            .and_then(|rest| rest.split_once("/revision/"))
        {
            return match self.find(repo, revision) {
                Err(answer) => answer,
                Ok(repository) => {
                    let siblings: Vec<_> = repository
                        .files
                        .keys()
                        .map(|name| json!({ "rfilename": name }))
                        .collect();
                    let answer =
                        json!({ "id": repo, "sha": repository.commit, "siblings": siblings });
                    Answer::new("200 OK", answer.to_string().into_bytes())
                }
            };
        }
        match path
            .split_once("/resolve/")
            .and_then(|(repo, rest)| Some((repo, rest.split_once('/')?)))
        {
            Some((repo, (revision, name))) => self.resolve(request, repo, revision, name),
            None => Answer::error("404 Not Found", ""),
        }
    }

    fn find(&self, repo: &str, revision: &str) -> Result<&Repository, Answer> {
        // As the hub does, so that nobody learns which private repositories exist.
        let found = self
            .repositories
            .get(repo)
            .ok_or_else(|| Answer::error("401 Unauthorized", "RepoNotFound"))?;
        if revision == "main" || revision == found.commit {
            return Ok(found);
        }
        Err(Answer::error("404 Not Found", "RevisionNotFound"))
    }

    fn resolve(&mut self, request: &Request, repo: &str, revision: &str, name: &str) -> Answer {
        let gate = self
            .faults
            .gated
            .as_ref()
            .map(|token| format!("Bearer {token}"));
        if gate.is_some() && request.authorization != gate {
            return Answer::error("401 Unauthorized", "GatedRepo");
        }
        let (commit, bytes) = match self.find(repo, revision) {
            Err(answer) => return answer,
            Ok(repository) => match repository.files.get(name) {
                None => return Answer::error("404 Not Found", "EntryNotFound"),
                Some(bytes) => (repository.commit.clone(), bytes.clone()),
            },
        };
        let size = bytes.len().to_string();
        if name.ends_with(".safetensors") || name.ends_with(".gguf") {
            let digest = hex::encode(Sha256::digest(&bytes));
            let location = format!("{}/{digest}?Signature=secret", self.storage);
            self.blobs.insert(digest.clone(), bytes);
            return Answer::new("302 Found", b"elsewhere".to_vec())
                .with("Location", location)
                .with("X-Repo-Commit", commit)
                .with("X-Linked-Etag", format!("\"{digest}\""))
                .with("X-Linked-Size", size);
        }
        let digest = Sha1::new()
            .chain_update(format!("blob {size}\0"))
            .chain_update(&bytes);
        let etag = format!("\"{}\"", hex::encode(digest.finalize()));
        Answer::new("200 OK", bytes)
            .with("X-Repo-Commit", commit)
            .with("ETag", etag)
    }

    fn answer_storage(&mut self, request: &Request) -> Answer {
        if self.faults.expired > 0 {
            self.faults.expired -= 1;
            return Answer::error("403 Forbidden", "");
        }
        let digest = request
            .path
            .trim_start_matches('/')
            .split('?')
            .next()
            .unwrap_or_default();
        let Some(mut bytes) = self.blobs.get(digest).cloned() else {
            return Answer::error("404 Not Found", "");
        };
        if let Some(byte) = bytes.first_mut().filter(|_| self.faults.flip) {
            *byte ^= 1;
        }
        let size = bytes.len();
        let mut answer = match request.range.filter(|_| !self.faults.ignore_range) {
            Some(from) if from >= size => return Answer::error("416 Range Not Satisfiable", ""),
            Some(from) => Answer::new("206 Partial Content", bytes.split_off(from))
                .with("Content-Range", format!("bytes {from}-{}/{size}", size - 1)),
            None => Answer::new("200 OK", bytes),
        };
        if !self.faults.cut_after.is_empty() {
            answer.sent = self.faults.cut_after.remove(0);
        }
        answer
    }
}
