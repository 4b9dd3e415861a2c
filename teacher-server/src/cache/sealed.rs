//! Provides small sealed messages: a protobuf message in an object of its own, with a checksum that covers its name.

use distill_proto::Fingerprint;
use prost::Message;

use super::storage::Storage;
use crate::{Error, Result};

/// Bytes of a truncated blake3 digest.
const CHECKSUM_BYTES: usize = 16;
/// Most bytes of such an object: hundreds of millions of sequences.
const OBJECT_BYTES_MAX: u64 = 8 << 30;

/// Writes `message`, unless it is there already: others may make the same.
///
/// # Errors
/// `Cache` where something else has the name; `Io` naming the place.
pub fn put(storage: &Storage, name: &str, message: &impl Message) -> Result<()> {
    put_bytes(storage, name, message.encode_to_vec())
}

/// As `put`, for bytes that are no message.
///
/// # Errors
/// As `put`.
pub fn put_bytes(storage: &Storage, name: &str, mut bytes: Vec<u8>) -> Result<()> {
    let stored = bytes.len();
    bytes.extend(checksum(name, &bytes));
    if storage.put_if_absent(name, &bytes)? {
        return Ok(());
    }
    bytes.truncate(stored);
    if get_bytes(storage, name)?.as_ref() == Some(&bytes) {
        return Ok(());
    }
    Err(Error::cache(
        storage.path(name),
        "another process wrote something else here meanwhile: with other settings, another corpus or on other hardware. Run the same \
         command again, which goes on with what is there; where no cache is there and none is being made, remove this first",
    ))
}

/// Reads the message under `name`; `None` where there is none.
///
/// # Errors
/// `Cache` where the object is damaged, `Io`.
pub fn get<M: Message + Default>(storage: &Storage, name: &str) -> Result<Option<M>> {
    let Some(bytes) = get_bytes(storage, name)? else {
        return Ok(None);
    };
    let message = M::decode(bytes.as_slice()).map_err(|e| damaged(storage, name, e.to_string()))?;
    Ok(Some(message))
}

/// As `get`, for bytes that are no message.
///
/// # Errors
/// As `get`.
pub fn get_bytes(storage: &Storage, name: &str) -> Result<Option<Vec<u8>>> {
    let is_damaged = |error: &Error| matches!(error, Error::Cache { .. });
    storage.read_anew(name, is_damaged, || read(storage, name))
}

fn read(storage: &Storage, name: &str) -> Result<Option<Vec<u8>>> {
    let Some(length) = storage.length(name)? else {
        return Ok(None);
    };
    let within = CHECKSUM_BYTES as u64..=OBJECT_BYTES_MAX;
    let bytes = usize::try_from(length).ok();
    let Some(bytes) = bytes.filter(|_| within.contains(&length)) else {
        let reason = format!("{length} bytes are not what was written");
        return Err(damaged(storage, name, reason));
    };
    let mut bytes = storage.read(name, 0, bytes)?;
    let stored = bytes.split_off(bytes.len() - CHECKSUM_BYTES);
    if stored != checksum(name, &bytes) {
        return Err(damaged(storage, name, "checksum mismatch".into()));
    }
    Ok(Some(bytes))
}

fn damaged(storage: &Storage, name: &str, reason: String) -> Error {
    let remedy = "it is damaged, or from another build. `verify --repair` mends shards alone: bring this file back from a copy of the \
                  cache, or begin a new cache in another directory";
    Error::cache(storage.path(name), format!("{reason}: {remedy}"))
}

fn checksum(name: &str, bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let named = Fingerprint::of(name.as_bytes());
    let mut hasher = blake3::Hasher::new_keyed(&named.0);
    hasher.update(bytes);
    let mut out = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut out);
    out
}
