//! Provides the fixed-width frame header and its check against the named limits.

use super::planes::Reader;
use crate::{
    Error, Estimator, Fingerprint, Frame, Result, StateKind, ValueCoding, block::StateCoding,
    limits,
};

pub(super) const MAGIC: [u8; 4] = *b"DSTF";
/// The version that is written.
pub(super) const VERSION: u16 = 2;
/// The first version: byte planes under zstd. It is read only.
pub(super) const VERSION_1: u16 = 1;
/// Bytes before the temperatures.
pub(super) const HEADER_BYTES: usize = 104;

/// What differs between the versions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Layout {
    /// Version 1: all is in planes, a value takes 1 or 2 bytes.
    Planes { value_bytes: u8 },
    /// Version 2: rows and tokens are entropy coded, in this many bytes after the planes.
    Coded {
        statistics: StatisticsCoding,
        coded_bytes: u32,
    },
}

/// How the statistics of rows are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatisticsCoding {
    /// f32, in planes.
    Exact = 1,
    /// In small steps, with the rows.
    Fixed = 2,
}

/// Every length and coding of one frame; see FORMAT.md.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    pub estimator: Estimator,
    pub coding: ValueCoding,
    /// How the rest is laid out.
    pub layout: Layout,
    pub state: Option<(StateKind, StateCoding, u32)>,
    pub vocab_size: u32,
    pub tokens: u32,
    pub rows: u32,
    pub k: u32,
    pub text_bytes: u32,
    pub sequence_id: u64,
    pub index: u64,
    /// Bytes of the planes, decompressed; they are what zstd compresses.
    pub body_bytes: u32,
    pub compressed_bytes: u32,
    pub text_digest: Fingerprint,
    pub temperatures: Vec<f32>,
}

impl Header {
    pub fn new(frame: &Frame, statistics: StatisticsCoding) -> Result<Self> {
        let rows = &frame.rows;
        let header = Self {
            estimator: rows.estimator,
            coding: rows.coding,
            layout: Layout::Coded {
                statistics,
                coded_bytes: 0,
            },
            state: match &rows.state {
                Some(state) => Some((state.kind, state.coding, length("state rank", state.rank)?)),
                None => None,
            },
            vocab_size: rows.vocab_size,
            tokens: length("tokens", frame.token_ids.len())?,
            rows: length("rows", rows.rows)?,
            k: length("k", rows.k)?,
            text_bytes: length("text bytes", frame.text.len())?,
            sequence_id: frame.sequence_id,
            index: frame.index,
            body_bytes: 0,
            compressed_bytes: 0,
            text_digest: frame.text_digest,
            temperatures: rows.temperatures.clone(),
        };
        let body_bytes = header.checked_body_bytes()?;
        Ok(Self {
            body_bytes,
            ..header
        })
    }

    /// Bytes of the decompressed body, from the lengths alone.
    fn checked_body_bytes(&self) -> Result<u32> {
        use limits::*;
        let within = |what, value: u64, limit: usize| {
            let limit = limit as u64;
            if value <= limit {
                Ok(value)
            } else {
                Err(Error::LimitExceeded { what, value, limit })
            }
        };
        let tokens = within("tokens", self.tokens.into(), SEQUENCE_TOKENS_MAX)?;
        let rows = within("rows", self.rows.into(), SEQUENCE_TOKENS_MAX)?;
        let k = within("k", self.k.into(), KEPT_ENTRIES_MAX)?;
        within("vocabulary", self.vocab_size.into(), VOCAB_SIZE_MAX)?;
        within(
            "k against the vocabulary",
            self.k.into(),
            self.vocab_size as usize,
        )?;
        within("rows against tokens", rows, self.tokens as usize)?;
        let text = within("text bytes", self.text_bytes.into(), TEXT_BYTES_MAX)?;
        let temperatures = within(
            "temperatures",
            self.temperatures.len() as u64,
            TEMPERATURES_MAX,
        )?;
        let rank = self.state.map_or(0, |(_, _, rank)| u64::from(rank));
        within("state rank", rank, STATE_RANK_MAX)?;
        let state_row = match self.state {
            None => 0,
            Some((_, StateCoding::F16, _)) => 2 * rank,
            Some((_, StateCoding::I8, _)) => 4 + rank,
        };
        let counts = match self.estimator {
            Estimator::TopK => 0,
            _ => 4,
        };
        within("kept entries", rows * k, FRAME_ENTRIES_MAX)?;
        let statistics = 4 * (4 + temperatures);
        // All factors are below 2^20, so nothing here can overflow u64.
        let (token_bytes, row_bytes) = match self.layout {
            Layout::Planes { value_bytes } => {
                let entry = 3 + u64::from(value_bytes) + counts;
                (tokens * 12, k * entry + statistics)
            }
            Layout::Coded {
                statistics: StatisticsCoding::Exact,
                ..
            } => (0, statistics),
            Layout::Coded {
                statistics: StatisticsCoding::Fixed,
                ..
            } => (0, 0),
        };
        let body = token_bytes + tokens.div_ceil(8) + text + rows * (row_bytes + state_row);
        within("decompressed frame", body, FRAME_DECOMPRESSED_BYTES_MAX)?;
        length("decompressed frame", body as usize)
    }

    /// Bytes from the end of the header to the checksum.
    pub fn stored_bytes(&self) -> usize {
        let coded = match self.layout {
            Layout::Planes { .. } => 0,
            Layout::Coded { coded_bytes, .. } => coded_bytes,
        };
        self.compressed_bytes as usize + coded as usize
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        let (coding, step) = match self.coding {
            ValueCoding::Step(step) => (1u8, step),
            ValueCoding::F16 => (2, 0.0),
            ValueCoding::Graded(step) => (3, step),
        };
        let (version, layout, coded_bytes) = match self.layout {
            Layout::Planes { value_bytes } => (VERSION_1, value_bytes, 0),
            Layout::Coded {
                statistics,
                coded_bytes,
            } => (VERSION, statistics as u8, coded_bytes),
        };
        let (kind, state_coding, rank) = self.state.map_or((0, 0, 0), |(kind, coding, rank)| {
            (kind as u8, coding as u8, rank)
        });
        out.extend(MAGIC);
        out.extend(version.to_le_bytes());
        out.extend([
            self.estimator as u8,
            coding,
            layout,
            kind,
            state_coding,
            self.temperatures.len() as u8,
        ]);
        out.extend(step.to_le_bytes());
        for length in [
            self.vocab_size,
            self.tokens,
            self.rows,
            self.k,
            rank,
            self.text_bytes,
        ] {
            out.extend(length.to_le_bytes());
        }
        out.extend(self.sequence_id.to_le_bytes());
        out.extend(self.index.to_le_bytes());
        out.extend(self.body_bytes.to_le_bytes());
        out.extend(self.compressed_bytes.to_le_bytes());
        out.extend(coded_bytes.to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.text_digest.0);
        for temperature in &self.temperatures {
            out.extend(temperature.to_le_bytes());
        }
    }

    /// Reads and checks a header; nothing is allocated but the short list of temperatures.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self> {
        if reader.array::<4>("magic")? != MAGIC {
            return Err(Error::BadMagic);
        }
        let found = u16::from_le_bytes(reader.array("version")?);
        if found != VERSION && found != VERSION_1 {
            return Err(Error::UnsupportedVersion {
                found,
                supported: VERSION,
            });
        }
        let [estimator, coding, layout, kind, state_coding, temperatures] =
            reader.array("codings")?;
        let step = f32::from_le_bytes(reader.array("step")?);
        let [vocab_size, tokens, rows, k, rank, text_bytes] = reader.u32s("lengths")?;
        let sequence_id = u64::from_le_bytes(reader.array("sequence id")?);
        let index = u64::from_le_bytes(reader.array("index")?);
        reader.index = index;
        let [body_bytes, compressed_bytes] = reader.u32s("body lengths")?;
        let bad = |what, reason: String| Error::Invalid {
            index,
            what,
            reason,
        };
        let [coded_bytes, reserved] = reader.u32s("coded bytes")?;
        if reserved != 0 || found == VERSION_1 && coded_bytes != 0 {
            return Err(bad("reserved", "bytes are not zero".into()));
        }
        let text_digest = Fingerprint(reader.array("text digest")?);
        let estimator = match estimator {
            1 => Estimator::TopK,
            2 => Estimator::Sampled,
            3 => Estimator::HeadSampled,
            other => return Err(bad("estimator", format!("unknown code {other}"))),
        };
        let step_bits = step.to_bits();
        let unknown =
            || format!("unknown code {coding}, step {step}, layout {layout} in version {found}");
        let coding = match coding {
            1 => ValueCoding::Step(step),
            2 if step_bits == 0 => ValueCoding::F16,
            3 if found != VERSION_1 => ValueCoding::Graded(step),
            _ => return Err(bad("value coding", unknown())),
        };
        let layout = match (found, layout, coding) {
            (VERSION_1, 1, ValueCoding::Step(_)) | (VERSION_1, 2, _) => Layout::Planes {
                value_bytes: layout,
            },
            (VERSION, 1, _) => Layout::Coded {
                statistics: StatisticsCoding::Exact,
                coded_bytes,
            },
            (VERSION, 2, _) => Layout::Coded {
                statistics: StatisticsCoding::Fixed,
                coded_bytes,
            },
            _ => return Err(bad("value coding", unknown())),
        };
        if !coding.is_valid() {
            return Err(bad("value coding", unknown()));
        }
        let state = match (kind, state_coding, rank) {
            (0, 0, 0) => None,
            (2..=4, 1 | 2, 1..) => Some((
                match kind {
                    2 => StateKind::Exact,
                    3 => StateKind::Sketch,
                    _ => StateKind::Hidden,
                },
                if state_coding == 1 {
                    StateCoding::F16
                } else {
                    StateCoding::I8
                },
                rank,
            )),
            _ => {
                return Err(bad(
                    "state",
                    format!("unknown kind {kind}, coding {state_coding}, rank {rank}"),
                ));
            }
        };
        let count = usize::from(temperatures);
        if count > limits::TEMPERATURES_MAX {
            let (value, limit) = (count as u64, limits::TEMPERATURES_MAX as u64);
            return Err(Error::LimitExceeded {
                what: "temperatures",
                value,
                limit,
            });
        }
        let temperatures = (0..count)
            .map(|_| Ok(f32::from_le_bytes(reader.array("temperatures")?)))
            .collect::<Result<_>>()?;
        let header = Self {
            estimator,
            coding,
            layout,
            state,
            vocab_size,
            tokens,
            rows,
            k,
            text_bytes,
            sequence_id,
            index,
            body_bytes,
            compressed_bytes,
            text_digest,
            temperatures,
        };
        let expected = header.checked_body_bytes()?;
        if expected != body_bytes {
            return Err(bad(
                "body length",
                format!("{body_bytes} bytes, but the lengths add up to {expected}"),
            ));
        }
        Ok(header)
    }
}

pub(super) fn length(what: &'static str, value: usize) -> Result<u32> {
    let limit = u64::from(u32::MAX);
    u32::try_from(value).map_err(|_| Error::LimitExceeded {
        what,
        value: value as u64,
        limit,
    })
}
