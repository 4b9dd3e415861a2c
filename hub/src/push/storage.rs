//! Provides the way of large files into the hub's storage, by git's protocol for such (LFS): whole, or in parts.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use distill_program::FileError;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::SendBody;

use super::{api::Api, source::Source};
use crate::{
    Error, Result,
    client::{absolute, in_brackets, protocol, text},
    limits::PARTS_MAX,
    progress::{Progress, SEND},
};

const LFS: &str = "application/vnd.git-lfs+json";
/// The header of an action that is no header: bytes of a part.
const CHUNK_SIZE: &str = "chunk_size";

/// Sends files, and shows how far it is.
pub(super) struct Storage<'a> {
    api: &'a Api<'a>,
    progress: Progress,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    /// None where storage has it.
    actions: Option<Actions>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    header: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct Refusal {
    code: u16,
    message: String,
}

impl<'a> Storage<'a> {
    pub fn new(api: &'a Api<'a>) -> Self {
        let progress = Progress::new(api.repo, SEND);
        Self { api, progress }
    }

    /// Sees to it that storage has these files, each with its digest.
    pub fn send(mut self, files: &[(&Source<'_>, String)]) -> Result<()> {
        let bytes = files.iter().map(|(source, _)| source.bytes).sum();
        self.progress.expect(files.len(), bytes);
        let api = self.api;
        for (source, oid) in files {
            self.progress.begin(source.name(), 0);
            api.patiently(|| self.attempt(source, oid))?;
            self.progress.end(source.bytes);
        }
        self.progress.finish();
        Ok(())
    }

    /// Asks where the file is to go, and brings it there.
    fn attempt(&mut self, source: &Source<'_>, oid: &str) -> Result<()> {
        let Some(actions) = self.actions(source, oid)? else {
            return Ok(());
        };
        let Some(upload) = actions.upload else {
            return Ok(());
        };
        let url = self.address(&upload.href)?;
        let header = upload.header.unwrap_or_default();
        match header.get(CHUNK_SIZE) {
            Some(bytes) => self.send_parts(source, oid, &url, bytes, &header)?,
            None => {
                let headers: Vec<(String, String)> = header
                    .iter()
                    .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                    .collect();
                self.send_range(source, 0, source.bytes, &url, &headers)?;
            }
        }
        if let Some(verify) = actions.verify {
            let url = self.address(&verify.href)?;
            let object = json!({ "oid": oid, "size": source.bytes }).to_string();
            self.api.post(&url, LFS, object.as_bytes())?;
        }
        Ok(())
    }

    fn actions(&self, source: &Source<'_>, oid: &str) -> Result<Option<Actions>> {
        let api = self.api;
        let url = format!(
            "{}/{}.git/info/lfs/objects/batch",
            api.environment.endpoint, api.repo
        );
        let question = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "hash_algo": "sha256",
            "ref": { "name": "main" },
            "objects": [{ "oid": oid, "size": source.bytes }],
        });
        let batch: Batch = api.ask(&url, LFS, &question)?;
        let object = batch.objects.into_iter().find(|object| object.oid == oid);
        let object = object
            .ok_or_else(|| protocol(&url, format!("the answer leaves {} out", source.name())))?;
        if let Some(Refusal { code, message }) = object.error {
            let remedy = format!("storage does not take {}", source.name());
            return Err(api.refusal(code, in_brackets(&message), remedy));
        }
        Ok(object.actions)
    }

    /// An address of an action, which must not lose the encryption that the hub's has.
    fn address(&self, href: &str) -> Result<String> {
        let hub = &self.api.environment.endpoint;
        absolute(href, hub).ok_or_else(|| {
            protocol(
                hub,
                "sends files to no address, or from https to http".into(),
            )
        })
    }

    fn send_parts(
        &mut self,
        source: &Source<'_>,
        oid: &str,
        url: &str,
        chunk: &Value,
        header: &BTreeMap<String, Value>,
    ) -> Result<()> {
        let text_of = |value: &Value| value.as_str().map(str::to_owned);
        let chunk = chunk.as_u64().or_else(|| text_of(chunk)?.parse().ok());
        let mut urls = BTreeMap::new();
        for (number, href) in header {
            if let (Ok(number), Some(href)) = (number.parse::<u64>(), href.as_str()) {
                urls.insert(number, self.address(href)?);
            }
        }
        let count = urls.len() as u64;
        let chunk = chunk.filter(|chunk| *chunk > 0 && source.bytes.div_ceil(*chunk) == count);
        let chunk = chunk
            .filter(|_| count <= PARTS_MAX)
            .ok_or_else(|| protocol(url, format!("{count} parts for {} bytes", source.bytes)))?;
        let mut parts = Vec::new();
        let api = self.api;
        for (part, part_url) in (0u64..).zip(urls.values()) {
            let from = part * chunk;
            let bytes = chunk.min(source.bytes - from);
            let etag = api.patiently(|| self.send_range(source, from, bytes, part_url, &[]))?;
            let etag = etag.ok_or_else(|| protocol(part_url, "a part has no ETag".into()))?;
            parts.push(json!({ "partNumber": part + 1, "etag": etag }));
        }
        let whole = json!({ "oid": oid, "parts": parts }).to_string();
        api.post(url, LFS, whole.as_bytes()).map(drop)
    }

    /// Sends some of a file's bytes; the etag of what has arrived.
    fn send_range(
        &mut self,
        source: &Source<'_>,
        from: u64,
        bytes: u64,
        url: &str,
        headers: &[(String, String)],
    ) -> Result<Option<String>> {
        let mut body = Sending {
            reader: source.reader(from, bytes)?,
            left: bytes,
            at: from,
            progress: &mut self.progress,
            stopped: self.api.stopped,
            failure: None,
        };
        let response = self
            .api
            .put(url, headers, SendBody::from_reader(&mut body), bytes);
        if (self.api.stopped)() {
            return Err(Error::Stopped);
        }
        if let Some(failure) = body.failure {
            return Err(FileError::at("read", source.path())(failure).into());
        }
        Ok(text(response?.headers(), "etag"))
    }
}

/// The bytes of a file on their way.
struct Sending<'a> {
    reader: Box<dyn Read + 'a>,
    left: u64,
    at: u64,
    progress: &'a mut Progress,
    stopped: &'a dyn Fn() -> bool,
    /// Why the file could not be read, which is none of the network's business.
    failure: Option<io::Error>,
}

impl Read for Sending<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.stopped)() {
            return Err(io::Error::other("stopped"));
        }
        let read = match self.reader.read(buffer) {
            Ok(0) if self.left > 0 => Err(io::Error::other("it became shorter meanwhile")),
            read => read,
        };
        let count = read.inspect_err(|error| {
            self.failure = Some(io::Error::new(error.kind(), error.to_string()));
        })?;
        self.left = self.left.saturating_sub(count as u64);
        self.at += count as u64;
        self.progress.at(self.at);
        Ok(count)
    }
}
