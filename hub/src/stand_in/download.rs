//! Provides what the stand-in gives: a revision's files, digests and sizes, and bytes.

use serde_json::json;

use super::{
    Repository, State,
    http::{Answer, Request},
    upload::{git, is_stored, sha256},
};

impl State {
    pub(super) fn answer_hub(&mut self, request: &Request) -> Answer {
        if self.faults.down {
            return Answer::error("503 Service Unavailable", "");
        }
        if request.method == "POST" {
            return self.take(request);
        }
        let path = request.path.trim_start_matches('/');
        if let Some(model) = path.strip_prefix("api/models/") {
            let (repo, revision) = model.split_once("/revision/").unwrap_or((model, "main"));
            return self.describe(repo, revision);
        }
        match path
            .split_once("/resolve/")
            .and_then(|(repo, rest)| Some((repo, rest.split_once('/')?)))
        {
            Some((repo, (revision, name))) => self.resolve(request, repo, revision, name),
            None => Answer::error("404 Not Found", ""),
        }
    }

    fn describe(&self, repo: &str, revision: &str) -> Answer {
        if let Some(name) = &self.faults.moved {
            let location = format!("/api/models/{name}");
            return Answer::new("307 Temporary Redirect", Vec::new()).with("Location", location);
        }
        let repository = match self.find(repo, revision) {
            Err(answer) => return answer,
            Ok(repository) => repository,
        };
        let files = repository.files.keys();
        let siblings: Vec<_> = files.map(|name| json!({ "rfilename": name })).collect();
        let answer = json!({
            "id": repo, "sha": repository.commit, "private": repository.private, "siblings": siblings,
        });
        Answer::json("200 OK", &answer)
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
        if is_stored(name) {
            let digest = sha256(&bytes);
            let location = format!("{}/{digest}?Signature=secret", self.storage);
            self.blobs.insert(digest.clone(), bytes);
            return Answer::new("302 Found", b"elsewhere".to_vec())
                .with("Location", location)
                .with("X-Repo-Commit", commit)
                .with("X-Linked-Etag", format!("\"{digest}\""))
                .with("X-Linked-Size", size);
        }
        let etag = format!("\"{}\"", git(&bytes));
        Answer::new("200 OK", bytes)
            .with("X-Repo-Commit", commit)
            .with("ETag", etag)
    }

    pub(super) fn answer_storage(&mut self, request: &Request) -> Answer {
        if self.faults.expired > 0 {
            self.faults.expired -= 1;
            return Answer::error("403 Forbidden", "");
        }
        if request.method == "PUT" {
            return self.store(request);
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
