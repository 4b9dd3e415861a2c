//! Provides one file that is uploaded: its name in the repository, its bytes, and their digests.

use std::{
    fs,
    io::{Cursor, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use distill_program::{FileError, files};
use sha2::{Digest, Sha256};

use crate::{
    Result,
    limits::SAMPLE_BYTES,
    name::is_file_name,
    verify::{digest, git_header},
};

/// The bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Those of a file here.
    File(PathBuf),
    /// These.
    Bytes(Vec<u8>),
}

/// A file of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    name: String,
    content: Content,
}

impl Upload {
    /// A file with this name in the repository; `None` where the name would be no good on the hub, or in its cache.
    pub fn new(name: &str, content: Content) -> Option<Self> {
        name.split('/').all(is_file_name).then(|| Self {
            name: name.to_owned(),
            content,
        })
    }

    /// Its name in the repository.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many bytes it has.
    ///
    /// # Errors
    /// The file is gone.
    pub fn bytes(&self) -> Result<u64> {
        Ok(match &self.content {
            Content::File(path) => {
                let metadata = fs::metadata(path).map_err(FileError::at("read", path))?;
                metadata.len()
            }
            Content::Bytes(bytes) => bytes.len() as u64,
        })
    }
}

/// A file of an upload, with what the hub asks of it first.
pub(super) struct Source<'a> {
    upload: &'a Upload,
    /// Its size.
    pub bytes: u64,
    /// Its beginning.
    pub sample: Vec<u8>,
}

impl<'a> Source<'a> {
    pub fn open(upload: &'a Upload) -> Result<Self> {
        let mut source = Self {
            upload,
            bytes: upload.bytes()?,
            sample: Vec::new(),
        };
        source.sample = source.read(SAMPLE_BYTES.min(source.bytes))?;
        Ok(source)
    }

    pub fn name(&self) -> &str {
        &self.upload.name
    }

    /// What messages call it.
    pub fn path(&self) -> &Path {
        match &self.upload.content {
            Content::File(path) => path,
            Content::Bytes(_) => Path::new(&self.upload.name),
        }
    }

    /// A reader of `bytes` bytes from position `from` on.
    pub fn reader(&self, from: u64, bytes: u64) -> Result<Box<dyn Read + '_>> {
        match &self.upload.content {
            Content::File(path) => {
                let mut file = files::open(path)?;
                file.seek(SeekFrom::Start(from))
                    .map_err(FileError::at("read", path))?;
                Ok(Box::new(file.take(bytes)))
            }
            Content::Bytes(content) => {
                let mut cursor = Cursor::new(content);
                cursor.set_position(from);
                Ok(Box::new(cursor.take(bytes)))
            }
        }
    }

    /// Its first bytes.
    pub fn read(&self, bytes: u64) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let read = self.reader(0, bytes)?.read_to_end(&mut content);
        read.map_err(FileError::at("read", self.path()))?;
        Ok(content)
    }

    /// Its name in storage.
    pub fn sha256(&self, stopped: &dyn Fn() -> bool) -> Result<String> {
        let reader = self.reader(0, self.bytes)?;
        digest(reader, Sha256::new(), self.path(), stopped)
    }

    /// Its name in git.
    pub fn git_oid(&self, stopped: &dyn Fn() -> bool) -> Result<String> {
        let reader = self.reader(0, self.bytes)?;
        digest(reader, git_header(self.bytes), self.path(), stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_can_be_fetched_again_are_uploaded() {
        let upload = |name: &str| Upload::new(name, Content::Bytes(Vec::new()));
        for name in ["README.md", "additional_chat_templates/rag.jinja"] {
            assert_eq!(upload(name).unwrap().name(), name);
        }
        for name in ["", "../x", "/x", "a b", ".gitattributes", "a//b", "a/"] {
            assert_eq!(upload(name), None, "{name}");
        }
    }

    #[test]
    fn a_part_of_a_file_is_the_same_from_disk_and_from_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        fs::write(&path, "hello\n").unwrap();
        for content in [Content::File(path), Content::Bytes(b"hello\n".to_vec())] {
            let upload = Upload::new("f", content).unwrap();
            let source = Source::open(&upload).unwrap();
            assert_eq!(source.sample, b"hello\n");
            let mut part = String::new();
            let mut reader = source.reader(2, 3).unwrap();
            reader.read_to_string(&mut part).unwrap();
            assert_eq!(part, "llo");
            // `git hash-object f`.
            assert_eq!(
                source.git_oid(&|| false).unwrap(),
                "ce013625030ba8dba906f756967f9e9ca394464a"
            );
        }
    }
}
