//! Provides whole files to objects and back, part by part, so that none has to fit into memory.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use distill_program::{
    FileError, files,
    progress::{Progress, Style},
    units::Bytes,
};
use object_store::{MultipartUpload, ObjectStoreExt};

use crate::{Result, Store, store::wrote};

/// Bytes of a part, and of a file that is sent at once.
const PART_BYTES: usize = 32 << 20;

impl Store {
    /// Makes an object of the file at `path`, in the place of one that may be there; all of it appears at once. Ends early with
    /// `Interrupted` once `stopped` says so.
    ///
    /// # Errors
    /// The file cannot be read; the service refuses, or cannot be reached.
    pub fn upload(&self, path: &Path, name: &str, stopped: &dyn Fn() -> bool) -> Result<()> {
        self.upload_parts(path, name, PART_BYTES, stopped)
    }

    fn upload_parts(
        &self,
        path: &Path,
        name: &str,
        part_bytes: usize,
        stopped: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut file = files::open(path)?;
        let mut part = next_part(&mut file, path, part_bytes)?;
        if part.len() < part_bytes {
            return self.replace(name, part);
        }
        let (service, key) = (self.service().clone(), self.key(name));
        let mut upload: Box<dyn MultipartUpload> =
            self.wait(
                "write",
                name,
                async move { service.put_multipart(&key).await },
            )?;
        while !part.is_empty() {
            if stopped() {
                // Storage removes what was never completed, by its own rules; nothing has changed.
                let aborted = self.wait("write", name, async move { upload.abort().await });
                return aborted.and(Err(interrupted(path)));
            }
            let bytes = part.len() as u64;
            let sent = upload.put_part(part.into());
            self.wait("write", name, sent)?;
            wrote(bytes);
            part = next_part(&mut file, path, part_bytes)?;
        }
        self.wait("write", name, async move { upload.complete().await })?;
        self.forget(name);
        Ok(())
    }

    /// Makes the file at `path` of an object; it appears at once. Ends early with `Interrupted` once `stopped` says so.
    ///
    /// # Errors
    /// `NotFound`; the service refuses, or cannot be reached; the disk.
    pub fn download(&self, name: &str, path: &Path, stopped: &dyn Fn() -> bool) -> Result<()> {
        let folder = files::directory_of(path);
        files::create_directory(folder)?;
        let fail = |reason| FileError::at("write", path)(reason);
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
        let bytes = self.known_version(name)?.bytes;
        let mut progress = (bytes > PART_BYTES as u64).then(|| shown(name, bytes));
        let mut at = 0;
        while at < bytes {
            if stopped() {
                return Err(interrupted(&self.path(name)));
            }
            let part = usize::try_from(bytes - at).map_or(PART_BYTES, |left| left.min(PART_BYTES));
            file.write_all(&self.read(name, at, part)?).map_err(fail)?;
            at += part as u64;
            if let Some(progress) = &mut progress {
                progress.tell(Bytes(at).to_string());
                progress.reach(at, at == bytes);
            }
        }
        file.as_file().sync_all().map_err(fail)?;
        file.persist(path).map_err(|error| fail(error.error))?;
        Ok(())
    }
}

/// The progress of what takes several requests.
fn shown(name: &str, bytes: u64) -> Progress {
    let style = Style {
        bar: "{prefix} {bar:30} {msg}",
        line: |now| {
            let (label, message, all) = (&now.label, &now.message, Bytes(now.total));
            format!("{label}: {message} of {all}{}", now.eta())
        },
    };
    Progress::start(&style, name, bytes)
}

/// As many bytes as there are, up to `bytes`.
fn next_part(file: &mut File, path: &Path, bytes: usize) -> Result<Vec<u8>> {
    let mut part = Vec::new();
    let read = file.take(bytes as u64).read_to_end(&mut part);
    read.map_err(FileError::at("read", path))?;
    Ok(part)
}

fn interrupted(path: &Path) -> FileError {
    FileError::at("transfer", path)(io::Error::new(io::ErrorKind::Interrupted, "stopped"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_comes_back_as_it_was_in_one_part_or_several() {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("file://{}/objects", directory.path().display());
        let store = Store::open(Path::new(&address)).unwrap();
        let (file, back) = (
            directory.path().join("file"),
            directory.path().join("a/back"),
        );
        for bytes in [0, 5, 10, 25] {
            let content: Vec<u8> = (0..bytes).collect();
            fs::write(&file, &content).unwrap();
            store.upload_parts(&file, "x/y", 10, &|| false).unwrap();
            store.download("x/y", &back, &|| false).unwrap();
            assert_eq!(fs::read(&back).unwrap(), content);
        }
        fs::write(&file, [7; 30]).unwrap();
        for stopped in [
            store.upload_parts(&file, "x/y", 10, &|| true),
            store.download("x/y", &back, &|| true),
        ] {
            let reason = stopped.unwrap_err().reason;
            assert_eq!(reason.kind(), io::ErrorKind::Interrupted);
        }
        store.download("x/y", &back, &|| false).unwrap();
        assert_eq!(fs::read(&back).unwrap().len(), 25);
    }
}
