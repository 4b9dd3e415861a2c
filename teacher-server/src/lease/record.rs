//! Provides the secrets of grants, and the record of the latest one, by which a restarted server knows who had the device.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use distill_program::{files, output};
use subtle::ConstantTimeEq;

/// 128 bits: nobody guesses them.
pub const SECRET_BYTES: usize = 16;
/// A record: the epoch, little-endian, and the secret.
const RECORD_BYTES: usize = size_of::<u64>() + SECRET_BYTES;

/// What the holder of a grant knows and nobody else does. It has no `Debug`, so that no log shows it.
#[derive(Clone)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// One that was never there before.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// For its holder.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// Whether `named` is this one; how much of it is right does not show in the time taken.
    pub fn is(&self, named: &[u8]) -> bool {
        self.0.ct_eq(named).into()
    }
}

/// Where the latest use of a device is noted, for the server after this one.
#[derive(Debug, Default)]
pub struct Record {
    path: Option<PathBuf>,
}

impl Record {
    /// None: who holds the device when the server restarts has to free it and to ask anew.
    pub fn none() -> Self {
        Self::default()
    }

    /// In the user's directory for the state of programs.
    pub fn of_device(device: &str) -> Self {
        let path = state_directory().map(|state| state.join(format!("ot-distill/lease-{device}")));
        if path.is_none() {
            tracing::warn!(
                "neither XDG_STATE_HOME nor HOME is set: a trainer that holds the device while this server restarts has to free it and to ask anew"
            );
        }
        Self { path }
    }

    /// At this path.
    pub fn at(path: PathBuf) -> Self {
        Self { path: Some(path) }
    }

    /// The latest use that a server before this one noted, if it did.
    pub fn read(&self) -> Option<(u64, Secret)> {
        let path = self.path.as_deref()?;
        match read(path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(
                    "cannot read {}: {error}; the device counts as nobody's",
                    path.display()
                );
                None
            }
        }
    }

    /// Notes a use, all of it or nothing. A failure is said once, and nothing is noted from then on.
    pub fn write(&mut self, epoch: u64, secret: &Secret) {
        let Some(path) = self.path.take() else {
            return;
        };
        match write(&path, epoch, secret) {
            Ok(()) => self.path = Some(path),
            Err(error) => tracing::warn!(
                "cannot write {}: {error}; a trainer that holds the device while this server restarts has to free it and to ask anew",
                path.display()
            ),
        }
    }
}

fn read(path: &Path) -> io::Result<(u64, Secret)> {
    let refusal = || io::Error::new(io::ErrorKind::InvalidData, "it is no record of a lease");
    let bytes = files::read(path, RECORD_BYTES as u64).map_err(|error| error.reason)?;
    let record: [u8; RECORD_BYTES] = bytes.try_into().map_err(|_| refusal())?;
    let mut epoch = [0; size_of::<u64>()];
    let mut secret = [0; SECRET_BYTES];
    let (of_epoch, of_secret) = record.split_at(epoch.len());
    epoch.copy_from_slice(of_epoch);
    secret.copy_from_slice(of_secret);
    Ok((u64::from_le_bytes(epoch), Secret(secret)))
}

fn write(path: &Path, epoch: u64, secret: &Secret) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    let directory = builder.recursive(true).mode(0o700);
    directory.create(files::directory_of(path))?;
    let record = [epoch.to_le_bytes().as_slice(), &secret.0].concat();
    output::write_private(path, &record).map_err(|error| error.reason)
}

fn state_directory() -> Option<PathBuf> {
    // The tests of this crate leave the home of whoever runs them alone.
    if cfg!(test) {
        return None;
    }
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_record_comes_back_whole_and_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/lease-cpu");
        let mut record = Record::at(path.clone());
        assert!(record.read().is_none());
        for epoch in [7, u64::MAX] {
            let secret = Secret::random();
            record.write(epoch, &secret);
            let (found, kept) = record.read().unwrap();
            assert_eq!(found, epoch);
            assert!(kept.is(&secret.to_bytes()));
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        for damaged in [&b""[..], &[1; 23], &[1; 25], &[1; 1 << 16]] {
            std::fs::write(&path, damaged).unwrap();
            assert!(record.read().is_none(), "{} bytes", damaged.len());
        }
    }

    #[test]
    fn a_record_that_cannot_be_written_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "no directory").unwrap();
        let mut record = Record::at(file.join("lease"));
        record.write(1, &Secret::random());
        assert!(record.path.is_none() && record.read().is_none());
    }

    #[test]
    fn a_secret_is_only_itself() {
        let secret = Secret::random();
        assert!(secret.is(&secret.to_bytes()));
        let mut longer = secret.to_bytes().to_vec();
        longer.push(0);
        assert!(!secret.is(&longer) && !secret.is(&longer[..15]) && !secret.is(b""));
        for bit in 0..8 * SECRET_BYTES {
            let mut other = secret.to_bytes().to_vec();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!secret.is(&other), "bit {bit}");
        }
        assert!(!secret.is(&Secret::random().to_bytes()));
    }
}
