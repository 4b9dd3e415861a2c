//! Provides the hub's HTTP API: a revision's files, a file's digest and size, and its bytes from any position.

mod address;
mod agent;

use serde::Deserialize;
use ureq::{
    Agent, Body,
    http::{Response, StatusCode, header::HeaderMap},
};

use self::address::bare;
pub(crate) use self::{
    address::{absolute, same_origin},
    agent::{agent, patiently},
};
use crate::{
    Environment, Error, Reference, Result,
    limits::{API_BYTES_MAX, FILE_BYTES_MAX, REDIRECTS_MAX, SERVER_WORDS_MAX, SILENCE_TIMEOUT},
    name::{is_commit, is_file_name},
};

/// What a revision stands for at the moment.
#[derive(Debug)]
pub(crate) struct Revision {
    /// Its commit.
    pub commit: String,
    /// The names of its files.
    pub files: Vec<String>,
}

/// What the hub says about one file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Its name in the repository.
    pub name: String,
    /// Its address at the hub, which redirects to where the bytes are.
    pub url: String,
    /// The name of its blob, most often a digest.
    pub etag: String,
    /// Its size.
    pub bytes: u64,
}

/// Asks one hub about one repository.
pub(crate) struct Client<'a> {
    agent: Agent,
    environment: &'a Environment,
    reference: &'a Reference,
}

#[derive(Deserialize)]
struct RevisionAnswer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Head,
}

impl<'a> Client<'a> {
    /// # Errors
    /// A file of authorities that cannot be used.
    pub fn new(environment: &'a Environment, reference: &'a Reference) -> Result<Self> {
        Ok(Self {
            agent: agent(environment, SILENCE_TIMEOUT)?,
            environment,
            reference,
        })
    }

    /// Which commit the revision is, and its files.
    pub fn revision(&self) -> Result<Revision> {
        let Reference { repo, .. } = self.reference;
        let revision = self.reference.revision().replace('/', "%2F");
        let url = format!(
            "{}/api/models/{repo}/revision/{revision}",
            self.environment.endpoint
        );
        let mut response = self.ask(Method::Get, &url, None)?;
        let body = response
            .body_mut()
            .with_config()
            .limit(API_BYTES_MAX)
            .read_to_vec();
        let body = body.map_err(|e| network(&url, e))?;
        let answer: RevisionAnswer = serde_json::from_slice(&body)
            .map_err(|e| protocol(&url, format!("no description of a repository: {e}")))?;
        if !is_commit(&answer.sha) {
            return Err(protocol(&url, "`sha` is no commit id".to_owned()));
        }
        let files = answer
            .siblings
            .into_iter()
            .map(|sibling| sibling.rfilename)
            .collect();
        Ok(Revision {
            commit: answer.sha,
            files,
        })
    }

    /// Digest and size of a file.
    pub fn describe(&self, commit: &str, name: &str) -> Result<Remote> {
        let url = format!(
            "{}/{}/resolve/{commit}/{name}",
            self.environment.endpoint, self.reference.repo
        );
        let response = self.ask(Method::Head, &url, None)?;
        let headers = response.headers();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let etag = etag.filter(|etag| is_file_name(etag));
        let etag = etag.ok_or_else(|| {
            protocol(
                &url,
                "the answer has no usable X-Linked-Etag or ETag".to_owned(),
            )
        })?;
        // The length of a redirect is that of its own page.
        let length = if response.status().is_redirection() {
            None
        } else {
            text(headers, "content-length")
        };
        let bytes = text(headers, "x-linked-size")
            .or(length)
            .and_then(|size| size.parse().ok());
        match bytes {
            Some(bytes) if bytes <= FILE_BYTES_MAX => Ok(Remote {
                name: name.to_owned(),
                url,
                etag,
                bytes,
            }),
            Some(bytes) => Err(protocol(
                &url,
                format!("{bytes} bytes are above the limit of {FILE_BYTES_MAX}"),
            )),
            None => Err(protocol(&url, "the answer tells no size".to_owned())),
        }
    }

    /// The bytes of a file from position `from` on; the position at which the answer begins, which may be 0 for a server
    /// that cannot begin elsewhere.
    pub fn open(&self, remote: &Remote, from: u64) -> Result<(u64, Response<Body>)> {
        let response = self.ask(Method::Get, &remote.url, (from > 0).then_some(from))?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => range_start(response.headers()),
            _ => Some(0),
        };
        match start {
            Some(start) if start == from || start == 0 => Ok((start, response)),
            _ => Err(protocol(
                &remote.url,
                format!("asked for bytes from {from} on, the answer begins elsewhere"),
            )),
        }
    }

    /// Sends a request and follows redirects; a HEAD only within the hub, since only the hub tells digests.
    fn ask(&self, method: Method, url: &str, from: Option<u64>) -> Result<Response<Body>> {
        let mut target = url.to_owned();
        for _ in 0..=REDIRECTS_MAX {
            let at_hub = same_origin(&target, &self.environment.endpoint);
            let response = self.send(method, &target, from, at_hub)?;
            if !response.status().is_redirection() {
                return self.checked(response, &target, at_hub);
            }
            let location = text(response.headers(), "location").unwrap_or_default();
            let next = absolute(&location, &target).ok_or_else(|| {
                protocol(
                    &target,
                    "redirects to no address, or from https to http".to_owned(),
                )
            })?;
            if method == Method::Head && !same_origin(&next, &self.environment.endpoint) {
                return Ok(response);
            }
            if method == Method::Head && response.headers().contains_key("x-linked-etag") {
                return Ok(response);
            }
            target = next;
        }
        Err(protocol(
            url,
            format!("redirects more than {REDIRECTS_MAX} times"),
        ))
    }

    fn send(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
        at_hub: bool,
    ) -> Result<Response<Body>> {
        let mut request = match method {
            Method::Get => self.agent.get(url),
            Method::Head => self.agent.head(url),
        };
        if let Some(token) = self.environment.token.as_ref().filter(|_| at_hub) {
            request = request.header("authorization", token.authorization());
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| network(url, e))
    }

    /// The response, or what its status means.
    fn checked(&self, response: Response<Body>, url: &str, at_hub: bool) -> Result<Response<Body>> {
        let status = response.status();
        let headers = response.headers();
        let passing = status.is_server_error() || [408, 429].contains(&status.as_u16());
        // Addresses of storage are signed and expire; the hub gives a fresh one to the next attempt.
        if passing || (!at_hub && status.is_client_error()) {
            return Err(network(
                url,
                format!("the server answers {status}{}", said(headers)),
            ));
        }
        match status.as_u16() {
            200 | 206 => Ok(response),
            401 | 403 => Err(self.refused(status, headers)),
            404 => Err(self.missing(headers, url)),
            _ => Err(protocol(
                url,
                format!("unexpected answer {status}{}", said(headers)),
            )),
        }
    }

    fn missing(&self, headers: &HeaderMap, url: &str) -> Error {
        let what = match text(headers, "x-error-code").as_deref() {
            Some("RevisionNotFound") => format!("revision `{}`", self.reference.revision()),
            Some("EntryNotFound") => format!("file ({})", bare(url)),
            _ => format!("repository `{}`", self.reference.repo),
        };
        Error::Missing {
            reference: self.reference.to_string(),
            endpoint: self.environment.endpoint.clone(),
            what,
        }
    }

    fn refused(&self, status: StatusCode, headers: &HeaderMap) -> Error {
        let Environment {
            endpoint, token, ..
        } = self.environment;
        let page = format!("{endpoint}/{}", self.reference.repo);
        let gated = text(headers, "x-error-code").as_deref() == Some("GatedRepo");
        let place = self.environment.token_place();
        let remedy = match (token.is_some(), gated) {
            (false, true) => {
                format!("accept its terms at {page}, and put a token of that account into {place}")
            }
            (true, true) => {
                format!("accept its terms at {page} with the account of the token in {place}")
            }
            (false, false) => format!(
                "there is no such path here; on the hub it does not exist, or it is private: then put a token of an account that \
                 may read it into {place}"
            ),
            (true, false) => format!(
                "there is no such path here; on the hub it does not exist, or the token in {place} has expired or may not read it"
            ),
        };
        Error::Refused {
            reference: self.reference.to_string(),
            endpoint: endpoint.clone(),
            status: status.as_u16(),
            said: said(headers),
            remedy,
        }
    }
}

pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// What the hub says of an error in its own words, in brackets, cut to a line; empty where it says nothing.
pub(crate) fn said(headers: &HeaderMap) -> String {
    in_brackets(&text(headers, "x-error-message").unwrap_or_default())
}

/// A server's own words, as far as they are shown.
pub(crate) fn in_brackets(words: &str) -> String {
    let words: String = words
        .chars()
        .filter(|c| !c.is_control())
        .take(SERVER_WORDS_MAX)
        .collect();
    if words.is_empty() {
        words
    } else {
        format!(" ({words})")
    }
}

/// `Content-Range: bytes START-END/SIZE`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = text(headers, "content-range")?;
    range
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}

pub(crate) fn network(url: &str, reason: impl ToString) -> Error {
    Error::Network {
        url: bare(url).to_owned(),
        reason: reason.to_string(),
    }
}

pub(crate) fn protocol(url: &str, reason: String) -> Error {
    Error::Protocol {
        url: bare(url).to_owned(),
        reason,
    }
}
