/*! Provides the header of a GGUF file, read within named limits: metadata, and what and where each tensor is.

| bytes | what |
|---|---|
| 4 | `GGUF` |
| 4 | version, 2 or 3 |
| 8, 8 | number of tensors, number of entries |
| ... | an entry: key (a text), type u32, value |
| ... | a tensor: name (a text), rank u32, its sizes as u64, the fastest first, type u32, offset u64 |
| up to `general.alignment` | padding, from whose end offsets count |

A text is its length, u64, and that many bytes; a list is the type of its values, u32, their number, u64, and they. All is little-endian.
*/

use std::{
    collections::HashMap,
    io::{self, Read},
    path::Path,
};

use super::value::Value;
use crate::{Error, Result};

/// Longest header, in bytes; a vocabulary of a quarter of a million takes about 10 MB.
pub(super) const HEADER_BYTES_MAX: u64 = 256 << 20;
/// Most tensors, and most entries.
const TENSORS_MAX: u64 = 1 << 16;
const ENTRIES_MAX: u64 = 1 << 16;
/// Most values in all lists together: tokens, their types and scores, merges.
const LIST_VALUES_MAX: u64 = 1 << 22;
/// Most sizes of a tensor, as in ggml.
const RANK_MAX: u32 = 4;
/// Boundaries that tensors begin at.
const ALIGNMENT_DEFAULT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 20;

/// What a file says about itself.
pub(super) struct Header {
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, TensorInfo>,
    /// Byte from which tensors' offsets count.
    pub data_start: u64,
}

/// What a file says about a tensor.
pub(super) struct TensorInfo {
    /// ggml's number of the type.
    pub kind: u32,
    /// Sizes, the slowest first.
    pub shape: Vec<u64>,
    /// From the beginning of the data.
    pub offset: u64,
}

impl Header {
    /// Reads the header at the beginning of `file`.
    ///
    /// # Errors
    /// Names what is wrong, and the entry or tensor where it is.
    pub fn read(file: impl Read, path: &Path) -> Result<Self> {
        let mut reader = Reader {
            file: file.take(HEADER_BYTES_MAX),
            path,
            at: "(GGUF header)".into(),
            position: 0,
            list_values: LIST_VALUES_MAX,
        };
        reader.check_magic()?;
        let tensor_count = reader.count("tensors", TENSORS_MAX)?;
        let entry_count = reader.count("metadata entries", ENTRIES_MAX)?;
        let mut metadata = HashMap::new();
        for _ in 0..entry_count {
            reader.at = "(GGUF header)".into();
            let key = reader.text()?;
            reader.at.clone_from(&key);
            let kind = reader.u32()?;
            let value = reader.value(kind)?;
            if metadata.insert(key, value).is_some() {
                return Err(reader.fault("is there twice".into()));
            }
        }
        let mut tensors = HashMap::new();
        for _ in 0..tensor_count {
            reader.at = "(GGUF header)".into();
            let name = reader.text()?;
            reader.at = format!("tensor `{name}`");
            let info = reader.tensor()?;
            if tensors.insert(name, info).is_some() {
                return Err(reader.fault("is there twice".into()));
            }
        }
        let key = "general.alignment";
        reader.at = key.into();
        let alignment = match metadata.get(key) {
            None => ALIGNMENT_DEFAULT,
            Some(value) => value.unsigned().unwrap_or(0),
        };
        if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
            let problem = format!("is {alignment}, no power of two up to {ALIGNMENT_MAX}");
            return Err(reader.fault(problem));
        }
        Ok(Self {
            metadata,
            tensors,
            data_start: reader.position.next_multiple_of(alignment),
        })
    }
}

impl Header {
    /// Memory that the metadata takes: above all the tokenizer's lists.
    pub fn bytes(&self) -> usize {
        self.metadata.values().map(Value::bytes).sum()
    }

    /// Rows of the embedding.
    pub fn embedding_rows(&self) -> Option<u64> {
        let embedding = self.tensors.get("token_embd.weight")?;
        embedding.shape.first().copied()
    }
}

struct Reader<'a, F> {
    file: io::Take<F>,
    path: &'a Path,
    /// What is being read.
    at: String,
    position: u64,
    /// Values that lists may still have.
    list_values: u64,
}

impl<F: Read> Reader<'_, F> {
    fn check_magic(&mut self) -> Result<()> {
        let magic: [u8; 4] = self.bytes()?;
        if magic != *b"GGUF" {
            return Err(Error::malformed(
                self.path,
                &*self.at,
                "the file does not begin with `GGUF`; is it a GGUF model?",
            ));
        }
        match self.u32()? {
            2 | 3 => Ok(()),
            version => Err(Error::malformed(
                self.path,
                &*self.at,
                format!(
                    "is of version {version}; read are versions 2 and 3, little-endian: convert the model with a current llama.cpp"
                ),
            )),
        }
    }

    fn tensor(&mut self) -> Result<TensorInfo> {
        let rank = self.u32()?;
        if rank > RANK_MAX {
            return Err(self.fault(format!("has {rank} dimensions, of at most {RANK_MAX}")));
        }
        let mut shape = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            shape.push(self.u64()?);
        }
        shape.reverse();
        Ok(TensorInfo {
            shape,
            kind: self.u32()?,
            offset: self.u64()?,
        })
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Bool(self.bytes::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => self.list()?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            kind => return Err(self.fault(format!("is of type {kind}, which does not exist"))),
        })
    }

    fn list(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        if kind == 9 {
            return Err(self.fault("is a list of lists, which no model needs".into()));
        }
        let count = self.count("values", self.list_values)?;
        self.list_values -= count;
        // It grows with what the file really holds.
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(self.value(kind)?);
        }
        Ok(Value::List(values))
    }

    /// A text; bytes that are not UTF-8 are replaced.
    fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        if length > self.file.limit() {
            let problem = format!("a text of {length} bytes is longer than a header may be");
            return Err(self.fault(problem));
        }
        let mut bytes = Vec::new();
        let read = self.file.by_ref().take(length).read_to_end(&mut bytes);
        let read = read.map_err(|source| Error::io(self.path, source))?;
        if read as u64 != length {
            return Err(self.ended());
        }
        self.position += length;
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
        })
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64> {
        match self.u64()? {
            count if count <= most => Ok(count),
            count => Err(self.fault(format!("{count} {what} are more than a model has"))),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0u8; N];
        match self.file.read_exact(&mut bytes) {
            Ok(()) => {
                self.position += N as u64;
                Ok(bytes)
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(self.ended()),
            Err(e) => Err(Error::io(self.path, e)),
        }
    }

    fn ended(&self) -> Error {
        match self.file.limit() {
            0 => self.fault(format!(
                "is beyond the {HEADER_BYTES_MAX} bytes of a header"
            )),
            _ => self.fault("the file ends inside its header; it was cut off".into()),
        }
    }

    fn fault(&self, problem: String) -> Error {
        let position = self.position;
        let message = format!("{problem} (near byte {position}); download the file again");
        Error::malformed(self.path, &*self.at, message)
    }
}
