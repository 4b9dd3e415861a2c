//! Provides the transfer of one blob: locked, continued where it stopped, verified, and only then given its name.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use distill_program::{FileError, files};

use crate::{
    Error, Result,
    cache::{RepoCache, create_parent, pause},
    client::{Client, Remote, network},
    limits::ATTEMPTS_MAX,
    progress::Progress,
    verify::{Promise, mismatch},
};

/// Bytes between two looks at progress and at whether to stop.
const BUFFER_BYTES: usize = 1 << 16;

/// Fetches blobs into one repository's cache.
pub(crate) struct Transfer<'a> {
    pub client: &'a Client<'a>,
    pub cache: &'a RepoCache,
    pub stopped: &'a dyn Fn() -> bool,
    /// Before the second of several attempts.
    pub retry_wait: std::time::Duration,
}

impl Transfer<'_> {
    /// Sees to it that the blob of `remote` is in the cache, whole.
    ///
    /// # Errors
    /// `Network` where several attempts in a row brought nothing, `Checksum`, `DiskFull`, `Io`, `Stopped`; what arrived is
    /// kept for the next run unless its digest is wrong.
    pub fn run(&self, remote: &Remote, progress: &mut Progress) -> Result<()> {
        let blob = self.cache.blob(&remote.etag);
        create_parent(&blob)?;
        let _lock = self.cache.lock(&remote.etag, self.stopped)?;
        // Another process may have finished it while this one waited.
        if !is_whole(&blob, remote) {
            self.fetch(remote, progress)?;
            self.cache.publish(&remote.etag)?;
        }
        progress.end(remote.bytes);
        Ok(())
    }

    /// Fetches until the partial file is whole and verified; starts over once if what an earlier run left was wrong.
    fn fetch(&self, remote: &Remote, progress: &mut Progress) -> Result<()> {
        let partial = self.cache.partial(&remote.etag);
        if Promise::of(&remote.etag) == Promise::Nothing {
            // What cannot be verified is not pieced together.
            files::remove(&partial)?;
        }
        let mut continued = self.continue_file(remote, &partial, progress)?;
        loop {
            let Some(found) = mismatch(&partial, &remote.etag, self.stopped)? else {
                return Ok(());
            };
            files::remove(&partial)?;
            if !continued {
                return Err(Error::Checksum {
                    url: remote.url.clone(),
                    expected: remote.etag.clone(),
                    found,
                });
            }
            tracing::warn!(
                "{}: what an earlier run left is damaged; starting over",
                remote.name
            );
            continued = self.continue_file(remote, &partial, progress)?;
        }
    }

    /// Brings the partial file to its full length and to the disk; whether any of it was there before.
    fn continue_file(
        &self,
        remote: &Remote,
        partial: &Path,
        progress: &mut Progress,
    ) -> Result<bool> {
        let mut options = OpenOptions::new();
        let opened = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(partial);
        let mut file = opened.map_err(FileError::at("open", partial))?;
        let mut have = file
            .metadata()
            .map_err(FileError::at("read", partial))?
            .len();
        if have > remote.bytes {
            file.set_len(0).map_err(FileError::at("write", partial))?;
            have = 0;
        }
        let continued = have > 0;
        progress.begin(&remote.name, have);
        let (mut failures, mut wait) = (0, self.retry_wait);
        while have < remote.bytes {
            let before = have;
            match self.attempt(remote, &mut file, partial, &mut have, progress) {
                Ok(()) => {}
                Err(error) if error.is_unreachable() => {
                    if have > before {
                        (failures, wait) = (0, self.retry_wait);
                    }
                    failures += 1;
                    if failures >= ATTEMPTS_MAX {
                        return Err(error);
                    }
                    tracing::warn!("{error}; going on from byte {have}");
                    pause(wait, self.stopped)?;
                    wait *= 2;
                }
                Err(error) => return Err(error),
            }
        }
        file.sync_all().map_err(|e| write_error(e, partial, 0))?;
        Ok(continued)
    }

    /// One request from `have` on, written at its position; `have` follows what is on file.
    fn attempt(
        &self,
        remote: &Remote,
        file: &mut File,
        partial: &Path,
        have: &mut u64,
        progress: &mut Progress,
    ) -> Result<()> {
        let (start, response) = self.client.open(remote, *have)?;
        *have = start;
        file.seek(SeekFrom::Start(start))
            .map_err(FileError::at("write", partial))?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            if (self.stopped)() {
                return Err(Error::Stopped);
            }
            let count = body
                .read(&mut buffer)
                .map_err(|e| broken(remote, *have, &e.to_string()))?;
            if count == 0 {
                break;
            }
            let bytes = buffer.get(..count).unwrap_or_default();
            if *have + count as u64 > remote.bytes {
                return Err(network(
                    &remote.url,
                    format!("sends more than the {} bytes that it told", remote.bytes),
                ));
            }
            let left = remote.bytes - *have;
            file.write_all(bytes)
                .map_err(|e| write_error(e, partial, left))?;
            *have += count as u64;
            progress.at(*have);
        }
        if *have < remote.bytes {
            return Err(broken(remote, *have, "the answer ended"));
        }
        Ok(())
    }
}

fn broken(remote: &Remote, have: u64, reason: &str) -> Error {
    network(
        &remote.url,
        format!("broke off after {have} of {} bytes: {reason}", remote.bytes),
    )
}

fn is_whole(blob: &Path, remote: &Remote) -> bool {
    fs::metadata(blob).is_ok_and(|metadata| metadata.is_file() && metadata.len() == remote.bytes)
}

fn write_error(error: io::Error, path: &Path, bytes: u64) -> Error {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    if full.contains(&error.kind()) {
        let path = path.to_owned();
        return Error::DiskFull { path, bytes };
    }
    FileError::at("write", path)(error).into()
}
