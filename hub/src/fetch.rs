//! Provides the fetch of a repository as far as the cache lacks it, and its use without the hub.

use std::path::PathBuf;

use crate::{
    Environment, Error, Options, Reference, Result, Wanted,
    cache::RepoCache,
    client::{Client, Remote, patiently},
    name::is_commit,
    progress::{FETCH, Progress},
    selection::{Selection, Weights},
    transfer::Transfer,
};

/// The directory of the repository's snapshot with everything wanted in it, or its GGUF file.
///
/// # Errors
/// See [`Error`].
pub(crate) fn fetch(
    reference: &Reference,
    environment: &Environment,
    options: &Options<'_>,
) -> Result<PathBuf> {
    let cache = RepoCache::new(&environment.cache, &reference.repo);
    let cached = || cached(reference, &cache, options.wanted);
    if environment.offline {
        return cached().map_err(|(missing, directory)| Error::Offline {
            reference: reference.to_string(),
            missing,
            directory,
        });
    }
    // A commit never changes, so nobody needs to be asked.
    if is_commit(reference.revision())
        && let Ok(path) = cached()
    {
        return Ok(path);
    }
    let client = Client::new(environment, reference)?;
    let revision = match client.revision() {
        Err(error) if error.is_unreachable() => match cached() {
            Ok(path) => {
                tracing::warn!("{error}; using what the cache has of {reference}");
                return Ok(path);
            }
            Err(_) => patiently(environment.retry_wait, options.stopped, || {
                client.revision()
            })
            .map_err(|error| match error {
                Error::Network { .. } => Error::Unreachable {
                    reference: reference.to_string(),
                    reason: error.to_string(),
                },
                other => other,
            })?,
        },
        answer => answer?,
    };
    let selection = Selection::choose(reference, options.wanted, &revision.files)?;
    let mut download = Download {
        client: &client,
        cache: &cache,
        commit: &revision.commit,
        transfer: Transfer {
            client: &client,
            cache: &cache,
            stopped: options.stopped,
            retry_wait: environment.retry_wait,
        },
        progress: Progress::new(&reference.to_string(), FETCH),
    };
    download.files(&selection.small)?;
    download.files(&selection.weight_files(&cache.snapshot(&revision.commit))?)?;
    download.progress.finish();
    // Last, so that without the hub a revision is what was whole.
    if reference.revision() != revision.commit {
        cache.set_commit(reference.revision(), &revision.commit)?;
    }
    Ok(location(&cache, &revision.commit, &selection))
}

struct Download<'a> {
    client: &'a Client<'a>,
    cache: &'a RepoCache,
    commit: &'a str,
    transfer: Transfer<'a>,
    progress: Progress,
}

impl Download<'_> {
    /// Sees to it that the snapshot has these files.
    fn files(&mut self, names: &[String]) -> Result<()> {
        let there = self.cache.files(self.commit);
        let mut missing: Vec<Remote> = Vec::new();
        for name in names.iter().filter(|name| !there.contains(name)) {
            let describe = || self.client.describe(self.commit, name);
            let Transfer {
                retry_wait,
                stopped,
                ..
            } = self.transfer;
            missing.push(patiently(retry_wait, stopped, describe)?);
        }
        let bytes = missing.iter().map(|remote| remote.bytes).sum();
        self.progress.expect(missing.len(), bytes);
        for remote in &missing {
            self.transfer.run(remote, &mut self.progress)?;
            self.cache.link(self.commit, &remote.name, &remote.etag)?;
        }
        Ok(())
    }
}

fn location(cache: &RepoCache, commit: &str, selection: &Selection) -> PathBuf {
    let snapshot = cache.snapshot(commit);
    match &selection.weights {
        Weights::Gguf(file) => snapshot.join(file),
        _ => snapshot,
    }
}

/// What the cache has of the revision, if that is everything wanted; otherwise what is missing, and from where.
fn cached(
    reference: &Reference,
    cache: &RepoCache,
    wanted: Wanted,
) -> std::result::Result<PathBuf, (String, PathBuf)> {
    let revision = reference.revision();
    let commit = if is_commit(revision) {
        Some(revision.to_owned())
    } else {
        cache.commit(revision)
    };
    let Some(commit) = commit else {
        return Err((format!("revision `{revision}`"), cache.root().to_owned()));
    };
    let snapshot = cache.snapshot(&commit);
    let files = cache.files(&commit);
    let lack = |what: String| Err((what, snapshot.clone()));
    let selection = match Selection::choose(reference, wanted, &files) {
        Ok(selection) => selection,
        Err(Error::Unusable { reason, .. }) => {
            return lack(format!("what is needed: it has {reason}"));
        }
        Err(other) => return lack(other.to_string()),
    };
    let mut needed = selection.small.clone();
    match selection.weight_files(&snapshot) {
        Ok(weights) => needed.extend(weights),
        Err(error) => return lack(format!("a usable index of its weights ({error})")),
    }
    if wanted == Wanted::Model && !matches!(selection.weights, Weights::Gguf(_)) {
        needed.push("tokenizer.json".to_owned());
    }
    match needed.iter().find(|name| !files.contains(name)) {
        Some(name) => lack(name.clone()),
        None => Ok(location(cache, &commit, &selection)),
    }
}
