//! Provides the shard: frames of one plan side by side in a file, under a header that says where each one lies.

use crate::{Error, Fingerprint, FrameContext, Result, limits, numbers::narrow};

const MAGIC: [u8; 4] = *b"DSTS";
const VERSION: u16 = 1;
/// Bytes before the table.
pub const FIXED_BYTES: usize = 64;
/// Bytes of a frame's line in the table.
const ENTRY_BYTES: usize = 12;
/// Bytes of the truncated blake3 digest that ends header and table.
const CHECKSUM_BYTES: usize = 16;

/// One frame's line in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardEntry {
    /// Id of its sequence.
    pub sequence_id: u64,
    /// The whole frame.
    pub frame_bytes: u32,
}

/// What a shard holds; the frames follow it without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardHeader {
    /// Plan that the frames belong to.
    pub plan: Fingerprint,
    /// Number of the shard, which every frame's checksum covers.
    pub number: u32,
    /// Place in the plan's order of the first frame; the others follow it.
    pub first_index: u64,
    /// One for every frame, in order.
    pub entries: Vec<ShardEntry>,
    offsets: Vec<u64>,
}

impl ShardHeader {
    /// The header of a shard with these frames.
    ///
    /// # Errors
    /// `Shard` where there is no frame, more than a shard takes, or one that is longer than a frame may be.
    pub fn new(
        plan: Fingerprint,
        number: u32,
        first_index: u64,
        entries: Vec<ShardEntry>,
    ) -> Result<Self> {
        let count = entries.len();
        if count == 0 || count > limits::SHARD_FRAMES_MAX {
            let most = limits::SHARD_FRAMES_MAX;
            return Err(Error::Shard {
                number,
                offset: 12,
                reason: format!("{count} frames; a shard has 1 to {most}"),
            });
        }
        let mut offsets = Vec::with_capacity(count + 1);
        let mut offset = header_bytes(count) as u64;
        for (place, entry) in entries.iter().enumerate() {
            let (bytes, most) = (entry.frame_bytes, limits::FRAME_BYTES_MAX);
            if bytes as usize > most {
                return Err(Error::Shard {
                    number,
                    offset: (FIXED_BYTES + ENTRY_BYTES * place + 8) as u64,
                    reason: format!("a frame of {bytes} bytes, above the limit of {most}"),
                });
            }
            offsets.push(offset);
            offset += u64::from(bytes);
        }
        offsets.push(offset);
        Ok(Self {
            plan,
            number,
            first_index,
            entries,
            offsets,
        })
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.offsets.last().copied().unwrap_or_default()
    }

    /// Where the frame at `position` of the table lies: offset and bytes.
    pub fn extent(&self, position: usize) -> Option<(u64, usize)> {
        let (offset, entry) = (self.offsets.get(position)?, self.entries.get(position)?);
        Some((*offset, entry.frame_bytes as usize))
    }

    /// What the checksum of the frame at `position` covers beside its bytes.
    pub fn context(&self, position: usize) -> FrameContext {
        FrameContext {
            plan: self.plan,
            shard: self.number,
            index: self.first_index + position as u64,
        }
    }

    /// The bytes before the frames.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(header_bytes(self.entries.len()));
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(narrow(self.entries.len()).to_le_bytes());
        bytes.extend(self.first_index.to_le_bytes());
        bytes.extend(self.file_bytes().to_le_bytes());
        bytes.extend(self.plan.0);
        for entry in &self.entries {
            bytes.extend(entry.sequence_id.to_le_bytes());
            bytes.extend(entry.frame_bytes.to_le_bytes());
        }
        bytes.extend(checksum(&bytes));
        bytes
    }

    /// Bytes of header and table of the shard that starts with `fixed`, so that a reader knows how much to read.
    ///
    /// # Errors
    /// `Shard` where these are no such bytes, or the table does not fit into a file of `file_bytes`.
    pub fn header_bytes(fixed: &[u8], number: u32, file_bytes: u64) -> Result<usize> {
        let bad = |offset, reason: String| Error::Shard {
            number,
            offset,
            reason,
        };
        let mut reader = Fields { bytes: fixed };
        let fields = reader
            .fixed()
            .ok_or_else(|| bad(0, format!("{} bytes are no header of a shard", fixed.len())))?;
        if fields.magic != MAGIC {
            return Err(bad(
                0,
                "not a shard: it does not start with the magic bytes DSTS".into(),
            ));
        }
        if fields.version != VERSION {
            let found = fields.version;
            return Err(bad(
                4,
                format!("version {found} is not readable by this build, which reads {VERSION}"),
            ));
        }
        let count = fields.count as usize;
        if count == 0 || count > limits::SHARD_FRAMES_MAX {
            return Err(bad(12, format!("{count} frames")));
        }
        if fields.file_bytes != file_bytes {
            let stated = fields.file_bytes;
            return Err(bad(
                24,
                format!("the header says {stated} bytes, the file has {file_bytes}"),
            ));
        }
        let header = header_bytes(count);
        if header as u64 > file_bytes {
            return Err(bad(
                12,
                format!("a table of {count} frames ends after the file"),
            ));
        }
        Ok(header)
    }

    /// Reads header and table from the first `header_bytes` bytes of a file.
    ///
    /// # Errors
    /// `Shard` naming the byte: damage, another shard or plan, lengths that do not add up to the file.
    pub fn decode(bytes: &[u8], plan: Fingerprint, number: u32, file_bytes: u64) -> Result<Self> {
        let bad = |offset: usize, reason: String| Error::Shard {
            number,
            offset: offset as u64,
            reason,
        };
        let length = Self::header_bytes(bytes, number, file_bytes)?;
        let short = || bad(bytes.len(), format!("the header has {length} bytes"));
        let header = bytes.get(..length).ok_or_else(short)?;
        let (covered, stored) = header.split_at(length - CHECKSUM_BYTES);
        if checksum(covered) != stored {
            return Err(bad(0, "checksum mismatch of header or table".into()));
        }
        let mut reader = Fields { bytes: covered };
        let fields = reader.fixed().ok_or_else(short)?;
        if fields.reserved != [0; 2] {
            return Err(bad(6, "reserved bytes are not zero".into()));
        }
        if fields.number != number {
            let found = fields.number;
            return Err(bad(8, format!("the header says it is shard {found}")));
        }
        if fields.plan != plan {
            let found = fields.plan;
            return Err(bad(32, format!("belongs to plan {found}, not to {plan}")));
        }
        if fields
            .first_index
            .checked_add(u64::from(fields.count))
            .is_none()
        {
            return Err(bad(16, "the index of the first frame is too large".into()));
        }
        let entries = std::iter::from_fn(|| reader.entry()).collect();
        let header = Self::new(plan, number, fields.first_index, entries)?;
        if header.file_bytes() == file_bytes {
            return Ok(header);
        }
        Err(bad(
            FIXED_BYTES,
            format!(
                "the table adds up to {} bytes, the file has {file_bytes}",
                header.file_bytes()
            ),
        ))
    }
}

fn header_bytes(count: usize) -> usize {
    FIXED_BYTES + ENTRY_BYTES * count + CHECKSUM_BYTES
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut out = [0; CHECKSUM_BYTES];
    let mut hasher = blake3::Hasher::new();
    hasher.update(bytes);
    hasher.finalize_xof().fill(&mut out);
    out
}

struct Fixed {
    magic: [u8; 4],
    version: u16,
    reserved: [u8; 2],
    number: u32,
    count: u32,
    first_index: u64,
    file_bytes: u64,
    plan: Fingerprint,
}

/// Takes fields from the front; `None` where the bytes end.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = rest;
        Some(*head)
    }

    fn fixed(&mut self) -> Option<Fixed> {
        Some(Fixed {
            magic: self.array()?,
            version: u16::from_le_bytes(self.array()?),
            reserved: self.array()?,
            number: u32::from_le_bytes(self.array()?),
            count: u32::from_le_bytes(self.array()?),
            first_index: u64::from_le_bytes(self.array()?),
            file_bytes: u64::from_le_bytes(self.array()?),
            plan: Fingerprint(self.array()?),
        })
    }

    fn entry(&mut self) -> Option<ShardEntry> {
        Some(ShardEntry {
            sequence_id: u64::from_le_bytes(self.array()?),
            frame_bytes: u32::from_le_bytes(self.array()?),
        })
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    fn header() -> ShardHeader {
        let entries = [(7, 100), (8, 0), (9, 31)].map(|(sequence_id, frame_bytes)| ShardEntry {
            sequence_id,
            frame_bytes,
        });
        ShardHeader::new(Fingerprint::of(b"plan"), 3, 20, entries.into()).unwrap()
    }

    fn decode(bytes: &[u8], file_bytes: u64) -> Result<ShardHeader> {
        ShardHeader::decode(bytes, Fingerprint::of(b"plan"), 3, file_bytes)
    }

    #[test]
    fn reads_back_with_places_that_fill_the_file() {
        let header = header();
        let bytes = header.encode();
        assert_eq!(bytes.len(), 64 + 3 * 12 + 16);
        assert_eq!(header.file_bytes(), bytes.len() as u64 + 131);
        assert_eq!(header.extent(0), Some((bytes.len() as u64, 100)));
        assert_eq!(header.extent(2), Some((bytes.len() as u64 + 100, 31)));
        assert_eq!(header.extent(3), None);
        assert_eq!(header.context(2).index, 22);
        assert_eq!(decode(&bytes, header.file_bytes()).unwrap(), header);
        // Frames behind it are no part of it.
        let longer = [bytes.as_slice(), &[1; 9]].concat();
        assert_eq!(decode(&longer, header.file_bytes()).unwrap(), header);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let header = header();
        let bytes = header.encode();
        for bit in 0..8 * bytes.len() {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped, header.file_bytes()).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], header.file_bytes()).is_err());
        }
        assert!(decode(&bytes, header.file_bytes() - 1).is_err());
    }

    #[test]
    fn a_frame_above_the_limit_is_refused_before_it_is_read() {
        let mut header = header();
        header.entries[1].frame_bytes = u32::MAX;
        let bytes = header.encode();
        let error = decode(&bytes, header.file_bytes()).unwrap_err();
        let expected = "byte 84: a frame of 4294967295 bytes";
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn another_place_is_refused_by_name() {
        let header = header();
        let (bytes, length) = (header.encode(), header.file_bytes());
        let plan = Fingerprint::of(b"plan");
        let renamed = ShardHeader::decode(&bytes, plan, 4, length).unwrap_err();
        assert!(renamed.to_string().contains("shard 3"), "{renamed}");
        let other = ShardHeader::decode(&bytes, Fingerprint::of(b"b"), 3, length).unwrap_err();
        assert!(other.to_string().contains("plan"), "{other}");
        assert!(ShardHeader::new(plan, 0, 0, vec![]).is_err());
    }
}
