//! Provides the hub's HTTP API for uploads: the repository, how each file travels, and the commit.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use ureq::{
    Agent, Body, RequestBuilder, SendBody,
    http::{Response, StatusCode},
    typestate::WithBody,
};

use super::source::Source;
use crate::{
    Environment, Error, Result, Token,
    client::{agent, in_brackets, network, patiently, protocol, said, same_origin, text},
    limits::{API_BYTES_MAX, COMMIT_TIMEOUT, COMMITTED_BYTES_MAX},
};

const JSON: &str = "application/json";
const LINES_OF_JSON: &str = "application/x-ndjson";

/// Asks one hub about one repository, as someone.
pub(super) struct Api<'a> {
    agent: Agent,
    pub environment: &'a Environment,
    token: &'a Token,
    pub repo: &'a str,
    pub stopped: &'a dyn Fn() -> bool,
}

/// Whether a repository is there.
pub(super) enum There {
    No,
    Yes { private: bool, files: Vec<String> },
}

/// How a file travels; `has` is the digest of what has its name now.
pub(super) enum Mode {
    /// In the commit itself.
    Committed { has: Option<String> },
    /// Through storage.
    Stored { has: Option<String> },
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    private: bool,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

#[derive(Deserialize)]
struct Modes {
    files: Vec<FileMode>,
}

#[derive(Deserialize)]
struct FileMode {
    path: String,
    #[serde(rename = "uploadMode")]
    mode: String,
    oid: Option<String>,
}

#[derive(Deserialize)]
struct Committed {
    #[serde(rename = "commitOid")]
    oid: String,
}

impl<'a> Api<'a> {
    /// # Errors
    /// `HF_HUB_OFFLINE`, or nobody to push as.
    pub fn new(
        environment: &'a Environment,
        repo: &'a str,
        stopped: &'a dyn Fn() -> bool,
    ) -> Result<Self> {
        if environment.offline {
            return Err(Error::PushOffline);
        }
        let token = environment.token.as_ref().ok_or_else(|| Error::NoToken {
            endpoint: environment.endpoint.clone(),
            place: environment.token_place(),
        })?;
        Ok(Self {
            agent: agent(environment, COMMIT_TIMEOUT)?,
            environment,
            token,
            repo,
            stopped,
        })
    }

    /// What is there by the repository's name.
    pub fn look(&self) -> Result<There> {
        let url = format!("{}/api/models/{}", self.environment.endpoint, self.repo);
        let mut response = self.patiently(|| {
            let request = self.agent.get(&url);
            let request = request.header("authorization", self.token.authorization());
            let response = request.call().map_err(|e| network(&url, e))?;
            match response.status().as_u16() {
                // Without a repository of that name the hub says either.
                401 | 404 => Ok(response),
                301 | 302 | 307 | 308 => Err(self.moved(&response)),
                _ => self.checked(response, &url),
            }
        })?;
        if !response.status().is_success() {
            return Ok(There::No);
        }
        let model: Model = answer(&mut response, &url)?;
        let files = model.siblings.into_iter().map(|file| file.rfilename);
        Ok(There::Yes {
            private: model.private,
            files: files.collect(),
        })
    }

    /// Makes the repository; fine where somebody was faster.
    pub fn create(&self, private: bool) -> Result<()> {
        let url = format!("{}/api/repos/create", self.environment.endpoint);
        let (organization, name) = self.repo.split_once('/').unwrap_or_default();
        let wish = json!({
            "type": "model", "name": name, "organization": organization, "private": private,
        });
        let wish = wish.to_string();
        self.patiently(|| {
            let response = self.send(self.posting(&url, JSON), wish.as_bytes(), &url)?;
            if response.status() == StatusCode::CONFLICT {
                return Ok(());
            }
            self.checked(response, &url).map(drop)
        })
    }

    /// How each of these files travels.
    pub fn modes(&self, sources: &[Source<'_>]) -> Result<Vec<Mode>> {
        let url = format!(
            "{}/api/models/{}/preupload/main",
            self.environment.endpoint, self.repo
        );
        let file = |source: &Source<'_>| {
            json!({
                "path": source.name(), "size": source.bytes, "sample": STANDARD.encode(&source.sample),
            })
        };
        let files: Vec<Value> = sources.iter().map(file).collect();
        let modes: Modes = self.ask(&url, JSON, &json!({ "files": files }))?;
        let mode = |source: &Source<'_>| {
            let found = modes.files.iter().find(|mode| mode.path == source.name());
            let found = found.ok_or_else(|| {
                protocol(&url, format!("the answer leaves {} out", source.name()))
            })?;
            let has = found.oid.clone();
            match found.mode.as_str() {
                // Storage takes nothing that is empty.
                "lfs" if source.bytes > 0 => Ok(Mode::Stored { has }),
                "lfs" | "regular" => Ok(Mode::Committed { has }),
                other => Err(protocol(&url, format!("the upload mode `{other}`"))),
            }
        };
        sources.iter().map(mode).collect()
    }

    /// Makes the commit; its id.
    pub fn commit(
        &self,
        summary: &str,
        committed: &[&Source<'_>],
        stored: &[(&Source<'_>, String)],
    ) -> Result<String> {
        let url = format!(
            "{}/api/models/{}/commit/main",
            self.environment.endpoint, self.repo
        );
        let bytes: u64 = committed.iter().map(|source| source.bytes).sum();
        if bytes > COMMITTED_BYTES_MAX {
            return Err(protocol(
                &url,
                format!(
                    "wants {bytes} bytes in the commit itself, above the limit of {COMMITTED_BYTES_MAX}"
                ),
            ));
        }
        let header = json!({ "summary": summary, "description": "" });
        let mut lines = format!("{}\n", json!({ "key": "header", "value": header }));
        for source in committed {
            let content = STANDARD.encode(source.read(source.bytes)?);
            let file = json!({ "content": content, "path": source.name(), "encoding": "base64" });
            lines += &format!("{}\n", json!({ "key": "file", "value": file }));
        }
        for (source, oid) in stored {
            let file = json!({
                "path": source.name(), "algo": "sha256", "oid": oid, "size": source.bytes,
            });
            lines += &format!("{}\n", json!({ "key": "lfsFile", "value": file }));
        }
        // A second commit of the same files, where the first one's answer got lost, changes nothing.
        let mut response = self.patiently(|| self.post(&url, LINES_OF_JSON, lines.as_bytes()))?;
        let committed: Committed = answer(&mut response, &url)?;
        Ok(committed.oid)
    }

    /// Sends JSON, again where that fails for reasons that pass, and reads JSON.
    pub fn ask<T: DeserializeOwned>(&self, url: &str, kind: &str, question: &Value) -> Result<T> {
        let question = question.to_string();
        let mut response = self.patiently(|| self.post(url, kind, question.as_bytes()))?;
        answer(&mut response, url)
    }

    /// Sends bytes of this kind once.
    pub fn post(&self, url: &str, kind: &str, bytes: &[u8]) -> Result<Response<Body>> {
        let response = self.send(self.posting(url, kind), bytes, url)?;
        self.checked(response, url)
    }

    fn posting(&self, url: &str, kind: &str) -> RequestBuilder<WithBody> {
        let request = self.agent.post(url).header("content-type", kind);
        let request = request.header("accept", if kind == LINES_OF_JSON { JSON } else { kind });
        if same_origin(url, &self.environment.endpoint) {
            request.header("authorization", self.token.authorization())
        } else {
            request
        }
    }

    fn send(
        &self,
        request: RequestBuilder<WithBody>,
        bytes: &[u8],
        url: &str,
    ) -> Result<Response<Body>> {
        request.send(bytes).map_err(|e| network(url, e))
    }

    /// Sends what `body` reads to an address that is signed, with these headers: never with the token.
    pub fn put(
        &self,
        url: &str,
        headers: &[(String, String)],
        body: SendBody<'_>,
        bytes: u64,
    ) -> Result<Response<Body>> {
        let request = self.agent.put(url).header("content-length", bytes);
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(name, value)
        });
        let response = request.send(body).map_err(|e| network(url, e))?;
        self.checked(response, url)
    }

    /// Repeats what fails for reasons that pass.
    pub fn patiently<T>(&self, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        patiently(self.environment.retry_wait, self.stopped, attempt)
    }

    /// The response, or what its status means.
    fn checked(&self, mut response: Response<Body>, url: &str) -> Result<Response<Body>> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let said = said_of(&mut response);
        let passing = status.is_server_error() || [408, 429].contains(&status.as_u16());
        let at_hub = same_origin(url, &self.environment.endpoint);
        // Addresses of storage are signed and expire; the next attempt gets fresh ones.
        if passing || (!at_hub && status.is_client_error()) {
            return Err(network(url, format!("the server answers {status}{said}")));
        }
        if status.is_redirection() {
            return Err(protocol(
                url,
                "redirects, which nothing that is uploaded follows".into(),
            ));
        }
        Err(self.refused(status, said))
    }

    fn refused(&self, status: StatusCode, said: String) -> Error {
        let Environment { endpoint, .. } = self.environment;
        let place = self.environment.token_place();
        let organization = self.repo.split('/').next().unwrap_or_default();
        let remedy = match status.as_u16() {
            401 => format!(
                "it does not know the token in {place}, which may have expired; make one that may write at \
                 {endpoint}/settings/tokens"
            ),
            403 => format!(
                "the token in {place} may not write there; make one that may at {endpoint}/settings/tokens, with an account that \
                 is {organization} or belongs to it, and accept the terms at {endpoint}/{} where it has some",
                self.repo
            ),
            404 => format!(
                "it is not there for the account of the token in {place}; check its spelling, and that the account is \
                 {organization} or belongs to it"
            ),
            409 => "somebody else changed it at the same time; push again".to_owned(),
            _ => "the hub does not take it; nothing there has changed".to_owned(),
        };
        self.refusal(status.as_u16(), said, remedy)
    }

    pub fn refusal(&self, status: u16, said: String, remedy: String) -> Error {
        Error::Refused {
            reference: self.repo.to_owned(),
            endpoint: self.environment.endpoint.clone(),
            status,
            said,
            remedy,
        }
    }

    fn moved(&self, response: &Response<Body>) -> Error {
        let to = text(response.headers(), "location").unwrap_or_default();
        let to = to.rsplit("/api/models/").next().unwrap_or_default();
        Error::Unusable {
            reference: self.repo.to_owned(),
            reason: format!(
                "another name on the hub now{}; push to that",
                in_brackets(to)
            ),
        }
    }
}

/// The hub's own words about an error, in brackets: of a header, or of the JSON that is its answer.
fn said_of(response: &mut Response<Body>) -> String {
    let said = said(response.headers());
    if !said.is_empty() {
        return said;
    }
    let body = response.body_mut().with_config().limit(API_BYTES_MAX);
    let body: Option<Value> = serde_json::from_slice(&body.read_to_vec().unwrap_or_default()).ok();
    let words = body.as_ref().and_then(|body| body.get("error")?.as_str());
    in_brackets(words.unwrap_or_default())
}

fn answer<T: DeserializeOwned>(response: &mut Response<Body>, url: &str) -> Result<T> {
    let body = response.body_mut().with_config().limit(API_BYTES_MAX);
    let body = body.read_to_vec().map_err(|e| network(url, e))?;
    serde_json::from_slice(&body).map_err(|e| protocol(url, format!("an unexpected answer: {e}")))
}
