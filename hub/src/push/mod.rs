/*! Provides the upload of a model: files into the hub's storage, then one commit that names all of them.

```text
 files ──> source: size, beginning, digests
             │        api: is the repository there? create ──> preupload: which files go into storage, which are there already
             ├─> storage: batch ──> PUT, whole or in parts ──> verify
             └─> api: commit, the last step; before it nobody sees a change
```

What breaks off is tried again, and what storage has is not sent again. The `hf-hub` crate (1.0) is not used here either: it sends large
files by Xet alone, and would bring 103 crates for it.
*/

mod api;
mod source;
mod storage;

use self::{
    api::{Api, Mode, There},
    source::Source,
    storage::Storage,
};
use crate::{Environment, Error, Reference, Result};

pub use source::{Content, Upload};

/// What is uploaded, and who may end it.
pub struct Push<'a> {
    /// The repository; its branch is always `main`.
    pub to: &'a Reference,
    /// Whether nobody else may see it.
    pub private: bool,
    /// Its files. Others that are there stay.
    pub files: &'a [Upload],
    /// The commit in a line.
    pub summary: &'a str,
    /// Asked between writes; true ends the upload before the commit.
    pub stopped: &'a dyn Fn() -> bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The repository's page.
    pub url: String,
    /// The new commit; none where the repository had all of it.
    pub commit: Option<String>,
    /// Weights that were there before, and are not of this upload.
    pub others: Vec<String>,
}

/// Uploads files as one commit. Shows progress on standard error. Blocks; call it outside of an async runtime.
///
/// # Errors
/// No token, or one that may not write there; a network or a server that does not do its part; `Uncommitted` where somebody stopped it.
pub fn push(push: &Push<'_>) -> Result<Pushed> {
    push_in(push, &Environment::from_env()?)
}

/// As [`push()`], with another environment than the process's.
///
/// # Errors
/// As [`push()`].
pub fn push_in(push: &Push<'_>, environment: &Environment) -> Result<Pushed> {
    match run(push, environment) {
        Err(Error::Stopped) => Err(Error::Uncommitted {
            repo: push.to.repo.clone(),
        }),
        outcome => outcome,
    }
}

fn run(push: &Push<'_>, environment: &Environment) -> Result<Pushed> {
    let repo = &push.to.repo;
    let api = Api::new(environment, repo, push.stopped)?;
    let sources = push.files.iter().map(Source::open);
    let sources = sources.collect::<Result<Vec<Source<'_>>>>()?;
    let there = api.look()?;
    match &there {
        There::No => api.create(push.private)?,
        There::Yes { private: false, .. } if push.private => {
            return Err(Error::Public {
                repo: repo.clone(),
                endpoint: environment.endpoint.clone(),
            });
        }
        There::Yes { .. } => {}
    }
    let modes = api.modes(&sources)?;
    let (mut committed, mut stored) = (Vec::new(), Vec::new());
    for (source, mode) in sources.iter().zip(modes) {
        let oid = match &mode {
            Mode::Committed { .. } => source.git_oid(push.stopped)?,
            Mode::Stored { .. } => source.sha256(push.stopped)?,
        };
        match mode {
            Mode::Committed { has } | Mode::Stored { has } if has.as_ref() == Some(&oid) => {}
            Mode::Committed { .. } => committed.push(source),
            Mode::Stored { .. } => stored.push((source, oid)),
        }
    }
    let mut pushed = Pushed {
        url: format!("{}/{repo}", environment.endpoint),
        commit: None,
        others: others(there, push.files),
    };
    if committed.is_empty() && stored.is_empty() {
        return Ok(pushed);
    }
    Storage::new(&api).send(&stored)?;
    if (push.stopped)() {
        return Err(Error::Stopped);
    }
    pushed.commit = Some(api.commit(push.summary, &committed, &stored)?);
    Ok(pushed)
}

/// Weights of the repository that an upload does not replace.
fn others(there: There, files: &[Upload]) -> Vec<String> {
    let There::Yes { files: found, .. } = there else {
        return Vec::new();
    };
    let is_weights = |name: &String| name.ends_with(".safetensors") || name.ends_with(".gguf");
    let is_new = |name: &String| files.iter().all(|file| file.name() != name);
    let others = found.into_iter().filter(is_weights).filter(is_new);
    others.collect()
}
