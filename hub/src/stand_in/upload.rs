//! Provides what the stand-in takes: repositories, files in storage, whole or in parts, and commits.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{
    Repository, State,
    http::{Answer, Request},
};

const OK: &str = "200 OK";
const BAD: &str = "400 Bad Request";

/// Whether a file of this name lies in storage.
pub(super) fn is_stored(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

impl State {
    /// The hub's answer to a POST.
    pub(super) fn take(&mut self, request: &Request) -> Answer {
        if self.faults.busy > 0 {
            self.faults.busy -= 1;
            return Answer::error("429 Too Many Requests", "");
        }
        let path = request.path.trim_start_matches('/');
        if let Some(oid) = path.strip_prefix("complete/") {
            return self.complete(oid.split('?').next().unwrap_or_default(), request);
        }
        let writer = self.faults.writer.as_ref();
        let writer = writer.map(|token| format!("Bearer {token}"));
        if request.authorization.is_none() || writer.is_some() && request.authorization != writer {
            return Answer::error("401 Unauthorized", "");
        }
        if self.faults.forbidden {
            return Answer::error("403 Forbidden", "");
        }
        if path == "api/repos/create" {
            return self.create(request);
        }
        if let Some((repo, rest)) = path.split_once(".git/info/lfs/") {
            return match rest {
                "verify" => self.verify(request),
                _ => self.batch(repo, request),
            };
        }
        let of_model = path.strip_prefix("api/models/").unwrap_or_default();
        let commit = of_model.strip_suffix("/commit/main");
        match (of_model.strip_suffix("/preupload/main"), commit) {
            (Some(repo), _) => self.preupload(repo, request),
            (_, Some(repo)) => self.commit(repo, request),
            _ => Answer::error("404 Not Found", ""),
        }
    }

    fn create(&mut self, request: &Request) -> Answer {
        let wish = read(&request.body);
        let word = |key: &str| wish[key].as_str().unwrap_or_default().to_owned();
        let repo = format!("{}/{}", word("organization"), word("name"));
        if self.repositories.contains_key(&repo) {
            return Answer::error("409 Conflict", "");
        }
        let private = wish["private"].as_bool() == Some(true);
        let repository = Repository {
            private,
            ..Repository::default()
        };
        self.repositories.insert(repo.clone(), repository);
        Answer::json(OK, &json!({ "url": repo }))
    }

    fn preupload(&self, repo: &str, request: &Request) -> Answer {
        let Some(repository) = self.repositories.get(repo) else {
            return Answer::error("404 Not Found", "RepoNotFound");
        };
        let wish = read(&request.body);
        let files = wish["files"].as_array().cloned().unwrap_or_default();
        let mode = |file: &Value| {
            let path = file["path"].as_str().unwrap_or_default();
            let stored = is_stored(path);
            let digest = |bytes: &Vec<u8>| if stored { sha256(bytes) } else { git(bytes) };
            json!({
                "path": path,
                "uploadMode": if stored { "lfs" } else { "regular" },
                "shouldIgnore": false,
                "oid": repository.files.get(path).map(digest),
            })
        };
        let modes: Vec<Value> = files.iter().map(mode).collect();
        Answer::json(OK, &json!({ "files": modes }))
    }

    fn batch(&self, repo: &str, request: &Request) -> Answer {
        let wish = read(&request.body);
        let objects = wish["objects"].as_array().cloned().unwrap_or_default();
        let object = |object: &Value| {
            let oid = object["oid"].as_str().unwrap_or_default();
            let size = object["size"].as_u64().unwrap_or_default();
            let mut answer = json!({ "oid": oid, "size": size });
            if self.blobs.contains_key(oid) {
                return answer;
            }
            let (storage, hub) = (&self.storage, &self.endpoint);
            let upload = match self.faults.part_bytes {
                None => json!({
                    "href": format!("{storage}/whole/{oid}?Signature=secret"),
                    "header": { "X-Wanted": "this" },
                }),
                Some(part_bytes) => {
                    let mut header = json!({ "chunk_size": part_bytes.to_string() });
                    for part in 1..=size.div_ceil(part_bytes) {
                        let href = format!("{storage}/part/{oid}/{part}?Signature=secret");
                        header[format!("{part:05}")] = href.into();
                    }
                    json!({ "href": format!("{hub}/complete/{oid}?uploadId=1"), "header": header })
                }
            };
            let verify = json!({ "href": format!("{hub}/{repo}.git/info/lfs/verify") });
            answer["actions"] = json!({ "upload": upload, "verify": verify });
            answer
        };
        let objects: Vec<Value> = objects.iter().map(object).collect();
        Answer::json(OK, &json!({ "objects": objects }))
    }

    /// Storage's answer to a PUT.
    pub(super) fn store(&mut self, request: &Request) -> Answer {
        let path = request.path.split('?').next().unwrap_or_default();
        let path: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let oid = path.get(1).copied().unwrap_or_default().to_owned();
        match path.get(2).and_then(|number| number.parse().ok()) {
            None if !request.is_wanted || sha256(&request.body) != oid => {
                return Answer::error(BAD, "");
            }
            None => drop(self.blobs.insert(oid, request.body.clone())),
            Some(number) => {
                let parts = self.parts.entry(oid).or_default();
                parts.insert(number, request.body.clone());
            }
        }
        Answer::new(OK, Vec::new()).with("ETag", etag(&request.body))
    }

    /// Makes a file of its parts, which have to be those that the client names.
    fn complete(&mut self, oid: &str, request: &Request) -> Answer {
        let parts = self.parts.remove(oid).unwrap_or_default();
        let expected = parts
            .iter()
            .map(|(number, bytes)| json!({ "partNumber": number, "etag": etag(bytes) }));
        let expected: Vec<Value> = expected.collect();
        let bytes: Vec<u8> = parts.into_values().flatten().collect();
        if read(&request.body)["parts"] != json!(expected) || sha256(&bytes) != oid {
            return Answer::error(BAD, "");
        }
        self.blobs.insert(oid.to_owned(), bytes);
        Answer::json(OK, &json!({}))
    }

    fn verify(&self, request: &Request) -> Answer {
        let object = read(&request.body);
        let found = self.blobs.get(object["oid"].as_str().unwrap_or_default());
        let size = found.map(|bytes| bytes.len() as u64);
        if size.is_none() || size != object["size"].as_u64() {
            return Answer::error("404 Not Found", "");
        }
        Answer::json(OK, &json!({}))
    }

    fn commit(&mut self, repo: &str, request: &Request) -> Answer {
        let lines = String::from_utf8_lossy(&request.body).into_owned();
        let mut files = Vec::new();
        for line in lines.lines().map(|line| read(line.as_bytes())) {
            let value = &line["value"];
            let name = value["path"].as_str().unwrap_or_default().to_owned();
            let content = value["content"].as_str().unwrap_or_default();
            let oid = value["oid"].as_str().unwrap_or_default();
            let bytes = match line["key"].as_str() {
                Some("header") => continue,
                Some("file") => STANDARD.decode(content).ok(),
                Some("lfsFile") => self.blobs.get(oid).cloned(),
                _ => None,
            };
            let Some(bytes) = bytes else {
                return Answer::json(BAD, &json!({ "error": "a file that is not there" }));
            };
            files.push((name, bytes));
        }
        let Some(repository) = self.repositories.get_mut(repo) else {
            return Answer::error("404 Not Found", "RepoNotFound");
        };
        repository.files.extend(files);
        repository.commit = repository.digest();
        Answer::json(
            OK,
            &json!({ "success": true, "commitOid": repository.commit }),
        )
    }
}

fn read(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_default()
}

fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", hex::encode(Sha1::digest(bytes)))
}

/// The name of a file in storage.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The name of a file in git.
pub(super) fn git(bytes: &[u8]) -> String {
    let digest = crate::verify::git_header(bytes.len() as u64);
    hex::encode(digest.chain_update(bytes).finalize())
}
