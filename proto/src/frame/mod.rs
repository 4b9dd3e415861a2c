//! Provides the frame: one sequence's text, tokens, masks and rows as checksummed bytes.

mod body;
mod entropy;
mod groups;
mod header;
mod ids;
mod known;
mod moved;
mod planes;
mod rows;
mod sections;
mod statistics;
mod tokens;
mod validate;
mod values;

use crate::{Error, Result, View, block::Rows, fingerprint::Fingerprint, limits};
use header::{HEADER_BYTES, Header, length};
pub use moved::Destination;
use planes::Reader;

/// zstd level of the planes, which are text for the most part.
const ZSTD_LEVEL: i32 = 12;
/// Bytes of the truncated blake3 digest that ends a frame.
const CHECKSUM_BYTES: usize = 16;

/// One sequence with everything a trainer needs about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Content-derived id of the sequence, unique within a plan.
    pub sequence_id: u64,
    /// Index in the plan's order.
    pub index: u64,
    /// blake3 of `text`.
    pub text_digest: Fingerprint,
    /// The window's text; byte offsets point into it.
    pub text: String,
    /// T token ids.
    pub token_ids: Vec<u32>,
    /// Byte range of every token in `text`, empty for tokens without text of their own. It may begin or end inside a
    /// character that is divided between tokens.
    pub byte_offsets: Vec<(u32, u32)>,
    /// T flags; true where the token is a target. The first token never is.
    pub target_mask: Vec<bool>,
    /// One row for every target.
    pub rows: Rows,
    /// What the student reads, where that is another text.
    pub view: Option<View>,
}

/// What the checksum covers beside the bytes, so that a swapped or renamed frame is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameContext {
    /// Digest of the plan the frame belongs to.
    pub plan: Fingerprint,
    /// Shard number; 0 on a live stream.
    pub shard: u32,
    /// Index in the plan's order.
    pub index: u64,
}

impl Frame {
    /// Positions t of the targets, increasing; row i describes the token at `target_positions()[i]`.
    pub fn target_positions(&self) -> Vec<usize> {
        let flags = self.target_mask.iter().enumerate();
        flags
            .filter_map(|(t, &target)| target.then_some(t))
            .collect()
    }

    /// Serialises the frame.
    ///
    /// # Errors
    /// `Invalid` or `LimitExceeded` where the frame breaks the rules of FORMAT.md; nothing is written then.
    pub fn encode(&self, context: &FrameContext) -> Result<Vec<u8>> {
        self.validate()?;
        self.validate_codings()?;
        if self.index != context.index {
            return Err(Error::WrongIndex {
                expected: context.index,
                found: self.index,
            });
        }
        self.write(&body::Codes::of(&self.rows), context)
    }

    /// Serialises the frame with these codes for its numbers.
    fn write(&self, codes: &body::Codes, context: &FrameContext) -> Result<Vec<u8>> {
        let view = self.view.as_ref().map(View::to_bytes).unwrap_or_default();
        let mut header = Header::new(self, codes.statistics(), &view)?;
        let planes = body::planes(self, &view, codes);
        let coded = body::coded(self, &header, codes);
        header.coded_bytes = length("coded rows", coded.len())?;
        seal(header, &planes, &coded, context)
    }

    /// Reads a frame, checking every length, id and the checksum against `context`.
    ///
    /// # Errors
    /// Any damage, lying length or misplaced frame; never a panic, and nothing is allocated before it is checked.
    pub fn decode(bytes: &[u8], context: &FrameContext) -> Result<Frame> {
        let (header, compressed, coded) = open(bytes, context)?;
        let body = decompress(&header, compressed)?;
        let frame = body::read(&body, coded, &header)?;
        frame.validate()?;
        Ok(frame)
    }

    /// Checks a frame's header and checksum against `context` without decompressing it.
    ///
    /// # Errors
    /// As `decode`, but for what only the body shows. A frame that an honest writer made and that passes here decodes.
    pub fn check(bytes: &[u8], context: &FrameContext) -> Result<FrameSummary> {
        let (header, ..) = open(bytes, context)?;
        Ok(FrameSummary::of(&header, bytes.len()))
    }

    /// What the header at the start of `bytes` says, with the length of the whole frame; `bytes` may end before the
    /// frame does, at `HEADER_BYTES_MAX` or later. Nothing is checked but the header itself.
    ///
    /// # Errors
    /// No header of a frame that this build reads.
    pub fn peek(bytes: &[u8]) -> Result<FrameSummary> {
        let mut reader = Reader::new(bytes, 0);
        let header = Header::read(&mut reader)?;
        let head = bytes.len() - reader.remaining();
        let length = head + header.stored_bytes() + CHECKSUM_BYTES;
        check_length(length)?;
        Ok(FrameSummary::of(&header, length))
    }
}

/// Bytes of the longest header: enough for [`Frame::peek`].
pub const HEADER_BYTES_MAX: usize = HEADER_BYTES + 4 * limits::TEMPERATURES_MAX;

/// What a frame's header says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSummary {
    /// Id of its sequence.
    pub sequence_id: u64,
    /// Index in the plan's order.
    pub index: u64,
    /// Tokens of the sequence.
    pub tokens: u32,
    /// Targets, one row each.
    pub rows: u32,
    /// Kept entries a row.
    pub k: u32,
    /// The whole frame.
    pub bytes: usize,
}

impl FrameSummary {
    fn of(header: &Header, bytes: usize) -> Self {
        Self {
            sequence_id: header.sequence_id,
            index: header.index,
            tokens: header.tokens,
            rows: header.rows,
            k: header.k,
            bytes,
        }
    }
}

/// The bytes of a frame, from its planes and its coded part.
fn seal(
    mut header: Header,
    planes: &[u8],
    coded: &[u8],
    context: &FrameContext,
) -> Result<Vec<u8>> {
    let compression = |e: std::io::Error| Error::Compression {
        index: header.index,
        reason: e.to_string(),
    };
    let compressed = zstd::bulk::compress(planes, ZSTD_LEVEL).map_err(compression)?;
    header.compressed_bytes = length("compressed planes", compressed.len())?;
    join(&header, &compressed, coded, context)
}

/// The bytes of a frame, from its header and the parts whose lengths that says.
fn join(
    header: &Header,
    compressed: &[u8],
    coded: &[u8],
    context: &FrameContext,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES_MAX + header.stored_bytes() + CHECKSUM_BYTES);
    header.write(&mut bytes);
    bytes.extend(compressed);
    bytes.extend(coded);
    bytes.extend(checksum(&bytes, context));
    check_length(bytes.len())?;
    Ok(bytes)
}

fn check_length(bytes: usize) -> Result<()> {
    let (value, limit) = (bytes as u64, limits::FRAME_BYTES_MAX as u64);
    if value > limit {
        return Err(Error::LimitExceeded {
            what: "frame bytes",
            value,
            limit,
        });
    }
    Ok(())
}

/// The planes of a frame.
fn decompress(header: &Header, compressed: &[u8]) -> Result<Vec<u8>> {
    let compression = |reason: String| Error::Compression {
        index: header.index,
        reason,
    };
    // The capacity is the length the header's counts add up to: a zstd bomb stops there.
    let body = zstd::bulk::decompress(compressed, header.body_bytes as usize)
        .map_err(|e| compression(e.to_string()))?;
    if body.len() != header.body_bytes as usize {
        return Err(compression(format!(
            "{} bytes instead of {}",
            body.len(),
            header.body_bytes
        )));
    }
    Ok(body)
}

/// The header, the compressed planes and the coded part of a frame whose place, length and checksum are right.
fn open<'a>(bytes: &'a [u8], context: &FrameContext) -> Result<(Header, &'a [u8], &'a [u8])> {
    check_length(bytes.len())?;
    let mut reader = Reader::new(bytes, context.index);
    let header = Header::read(&mut reader)?;
    if header.index != context.index {
        return Err(Error::WrongIndex {
            expected: context.index,
            found: header.index,
        });
    }
    let compressed = reader.take("compressed planes", header.compressed_bytes as usize)?;
    let coded = header.stored_bytes() - compressed.len();
    let coded = reader.take("coded rows", coded)?;
    let stored: [u8; CHECKSUM_BYTES] = reader.array("checksum")?;
    if reader.remaining() != 0 {
        return Err(Error::Length {
            index: header.index,
            what: "end of frame",
            needed: 0,
            available: reader.remaining() as u64,
        });
    }
    let covered = bytes
        .split_at_checked(bytes.len() - CHECKSUM_BYTES)
        .map_or(bytes, |(head, _)| head);
    if checksum(covered, context) == stored {
        return Ok((header, compressed, coded));
    }
    Err(Error::Checksum {
        index: header.index,
    })
}

fn checksum(bytes: &[u8], context: &FrameContext) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&context.plan.0);
    hasher.update(&context.shard.to_le_bytes());
    hasher.update(&context.index.to_le_bytes());
    hasher.update(bytes);
    let mut out = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut out);
    out
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod drawn_tests;
#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod forged_tests;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod properties;
#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests;
#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod value_tests;
