//! Provides the reader of one safetensors header, written for hostile files: every length is checked before it is used.
//!
//! Layout: u64 little-endian header length, that many bytes of JSON, then the tensors' bytes without gaps.
//! `{"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {..}}`

use super::source::SourceFile;
use crate::{Error, Result};
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

/// Longest header accepted, in bytes. A 70B checkpoint in NF4 needs about half a megabyte.
pub const HEADER_BYTES_MAX: usize = 16 << 20;
/// Most dimensions a tensor may have.
pub const DIMENSIONS_MAX: usize = 8;

const LENGTH_BYTES: usize = size_of::<u64>();

/// Where a tensor lies in its file and how to read it.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Byte range from the start of the file.
    pub bytes: Range<u64>,
}

#[derive(Deserialize)]
struct RawInfo {
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads and validates the header of a safetensors file.
///
/// # Errors
/// [`Error::Malformed`] or [`Error::Tensor`] with the file and the tensor or field at fault.
pub(super) fn read_header(file: &SourceFile) -> Result<BTreeMap<String, TensorInfo>> {
    let path = file.path();
    let json = read_json(file)?;
    let data_start = (LENGTH_BYTES + json.len()) as u64;
    let RawHeader(raw) = serde_json::from_slice(&json)
        .map_err(|e| Error::malformed(path, "header", format!("not a safetensors header: {e}")))?;
    let mut tensors = BTreeMap::new();
    for (name, info) in raw {
        let info = check(&info, data_start, file.bytes())
            .map_err(|message| Error::tensor(path, &name, message))?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(Error::tensor(path, &name, "is described twice"));
        }
    }
    check_coverage(path, &tensors, data_start, file.bytes())?;
    Ok(tensors)
}

/// The header's JSON; the tensors' bytes follow it.
fn read_json(file: &SourceFile) -> Result<Vec<u8>> {
    let fault = |message| Error::malformed(file.path(), "header", message);
    let Some(available) = file.bytes().checked_sub(LENGTH_BYTES as u64) else {
        return Err(fault(format!(
            "the file has {} bytes and the header length alone takes {LENGTH_BYTES}",
            file.bytes()
        )));
    };
    let mut length = [0; LENGTH_BYTES];
    file.read(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if bytes > HEADER_BYTES_MAX {
        return Err(fault(format!(
            "claims {length} bytes, more than the limit of {HEADER_BYTES_MAX}; not a safetensors file?"
        )));
    }
    if length > available {
        return Err(fault(format!(
            "claims {length} bytes and the file ends after {available}; download it again"
        )));
    }
    let mut json = vec![0; bytes];
    file.read(LENGTH_BYTES as u64, &mut json)?;
    Ok(json)
}

/// Checks one entry against the file's size; the message does not repeat the name.
fn check(raw: &RawInfo, data_start: u64, file_bytes: u64) -> Result<TensorInfo, String> {
    if raw.shape.len() > DIMENSIONS_MAX {
        return Err(format!(
            "has {} dimensions, more than {DIMENSIONS_MAX}",
            raw.shape.len()
        ));
    }
    let too_large = || format!("shape {:?} overflows", raw.shape);
    let bits = raw
        .shape
        .iter()
        .try_fold(raw.dtype.bitsize() as u64, |bits, dim| {
            bits.checked_mul(*dim)
        })
        .ok_or_else(too_large)?;
    let (begin, end) = raw.data_offsets;
    let length = end
        .checked_sub(begin)
        .ok_or_else(|| format!("data_offsets run backwards: {begin}..{end}"))?;
    if bits % 8 != 0 || bits / 8 != length {
        return Err(format!(
            "shape {:?} of {:?} takes {} bytes, data_offsets hold {length}",
            raw.shape,
            raw.dtype,
            bits.div_ceil(8)
        ));
    }
    let available = file_bytes - data_start;
    if end > available {
        return Err(format!(
            "data_offsets {begin}..{end} end outside the file, which has {available} bytes of data; download it again"
        ));
    }
    let shape = raw.shape.iter().map(|dim| usize::try_from(*dim));
    Ok(TensorInfo {
        dtype: raw.dtype,
        shape: shape.collect::<Result<_, _>>().map_err(|_| too_large())?,
        // Both ends are at most `available`.
        bytes: data_start + begin..data_start + end,
    })
}

/// The tensors must tile the data section: no overlap, no gap, nothing after the last one.
fn check_coverage(
    path: &Path,
    tensors: &BTreeMap<String, TensorInfo>,
    data_start: u64,
    file_bytes: u64,
) -> Result<()> {
    let mut by_offset: Vec<_> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, info)| (info.bytes.start, info.bytes.end));
    let mut position = data_start;
    for (name, info) in by_offset {
        if info.bytes.start != position {
            let kind = if info.bytes.start < position {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            return Err(Error::tensor(
                path,
                name,
                format!(
                    "{kind}: starts at data byte {}, expected {}",
                    info.bytes.start - data_start,
                    position - data_start
                ),
            ));
        }
        position = info.bytes.end;
    }
    if position != file_bytes {
        return Err(Error::malformed(
            path,
            "data",
            format!(
                "{} bytes follow the last tensor; the header and the data do not belong together",
                file_bytes - position
            ),
        ));
    }
    Ok(())
}

/// The entries in file order, so that a name given twice is seen.
struct RawHeader(Vec<(String, RawInfo)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensor descriptions")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<RawHeader, M::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let info = map
                        .next_value::<RawInfo>()
                        .map_err(|e| de::Error::custom(format!("tensor `{name}`: {e}")))?;
                    entries.push((name, info));
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
