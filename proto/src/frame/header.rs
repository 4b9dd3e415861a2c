//! Provides the fixed-width frame header and its check against the named limits.

use super::planes::Reader;
use crate::{
    Error, Estimator, Fingerprint, Frame, Result, StateKind, ValueCoding,
    block::StateCoding,
    limits,
    numbers::{low_byte, narrow},
};

pub(super) const MAGIC: [u8; 4] = *b"DSTF";
/// The versions that are read: the later one is written where a frame has a view.
pub(super) const VERSION: u16 = 2;
pub(super) const VERSION_PAIRS: u16 = 3;
/// The bits of the state's coding above these are its layers less one.
const LAYERS_SHIFT: u8 = 4;
/// Bytes before the temperatures.
pub(super) const HEADER_BYTES: usize = 104;

/// How the statistics of rows are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatisticsCoding {
    /// f32, in planes.
    Exact = 1,
    /// In small steps, with the rows.
    Fixed = 2,
}

/// What the rows' `state` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StateShape {
    pub kind: StateKind,
    pub coding: StateCoding,
    /// Coordinates of all layers.
    pub rank: u32,
    pub layers: u8,
}

impl StateShape {
    fn row_bytes(self) -> u64 {
        match self.coding {
            StateCoding::F16 => 2 * u64::from(self.rank),
            StateCoding::I8 => 4 * u64::from(self.layers) + u64::from(self.rank),
        }
    }
}

/// Every length and coding of one frame; see FORMAT.md.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    pub estimator: Estimator,
    pub coding: ValueCoding,
    pub statistics: StatisticsCoding,
    pub state: Option<StateShape>,
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
    /// Bytes of the entropy-coded tokens and rows, after the planes.
    pub coded_bytes: u32,
    /// Bytes of the student's view among the planes; 0 without one.
    pub view_bytes: u32,
    pub text_digest: Fingerprint,
    pub temperatures: Vec<f32>,
}

impl Header {
    pub fn new(frame: &Frame, statistics: StatisticsCoding, view: &[u8]) -> Result<Self> {
        let rows = &frame.rows;
        let header = Self {
            estimator: rows.estimator,
            coding: rows.coding,
            statistics,
            state: match &rows.state {
                Some(state) => Some(StateShape {
                    kind: state.kind,
                    coding: state.coding,
                    rank: length("state rank", state.rank)?,
                    layers: low_byte(length("state layers", state.layers)?),
                }),
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
            coded_bytes: 0,
            view_bytes: length("view", view.len())?,
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
    pub fn checked_body_bytes(&self) -> Result<u32> {
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
        within(
            "vocabulary",
            self.vocab_size.into(),
            VOCAB_SIZE_MAX as usize,
        )?;
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
        let layer_rank = |state: StateShape| state.rank / u32::from(state.layers.max(1));
        let rank = self.state.map_or(0, layer_rank);
        within("state rank", rank.into(), STATE_RANK_MAX)?;
        let state_row = self.state.map_or(0, StateShape::row_bytes);
        within("kept entries", rows * k, FRAME_ENTRIES_MAX)?;
        // All factors are below 2^20, so nothing here can overflow u64.
        let statistics = match self.statistics {
            StatisticsCoding::Exact => 4 * (4 + temperatures),
            StatisticsCoding::Fixed => 0,
        };
        let view = within("view", self.view_bytes.into(), VIEW_BYTES_MAX)?;
        let body = tokens.div_ceil(8) + text + view + rows * (statistics + state_row);
        within("decompressed frame", body, FRAME_DECOMPRESSED_BYTES_MAX)?;
        length(
            "decompressed frame",
            usize::try_from(body).unwrap_or(usize::MAX),
        )
    }

    /// Bytes from the end of the header to the checksum.
    pub fn stored_bytes(&self) -> usize {
        self.compressed_bytes as usize + self.coded_bytes as usize
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        let (coding, step) = match self.coding {
            ValueCoding::Step(step) => (1u8, step),
            ValueCoding::F16 => (2, 0.0),
            ValueCoding::Graded(step) => (3, step),
        };
        let (kind, state_coding, rank) = self.state.map_or((0, 0, 0), |state| {
            let layers = state.layers.saturating_sub(1) << LAYERS_SHIFT;
            (state.kind as u8, state.coding as u8 | layers, state.rank)
        });
        out.extend(MAGIC);
        let version = if self.view_bytes == 0 {
            VERSION
        } else {
            VERSION_PAIRS
        };
        out.extend(version.to_le_bytes());
        out.extend([
            self.estimator.code(),
            coding,
            self.statistics as u8,
            kind,
            state_coding,
            low_byte(narrow(self.temperatures.len())),
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
        out.extend(self.coded_bytes.to_le_bytes());
        out.extend(self.view_bytes.to_le_bytes());
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
        if ![VERSION, VERSION_PAIRS].contains(&found) {
            return Err(Error::UnsupportedVersion {
                found,
                supported: VERSION_PAIRS,
            });
        }
        let [
            estimator,
            coding,
            statistics,
            kind,
            state_coding,
            temperatures,
        ] = reader.array("codings")?;
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
        let [coded_bytes, view_bytes] = reader.u32s("coded bytes")?;
        if (view_bytes > 0) != (found == VERSION_PAIRS) {
            let reason = format!("{view_bytes} bytes in a frame of version {found}");
            return Err(bad("view", reason));
        }
        let text_digest = Fingerprint(reader.array("text digest")?);
        let unknown = || bad("estimator", format!("unknown code {estimator}"));
        let estimator = Estimator::from_code(estimator).ok_or_else(unknown)?;
        let step_bits = step.to_bits();
        let unknown = || format!("unknown code {coding}, step {step}");
        let coding = match coding {
            1 => ValueCoding::Step(step),
            2 if step_bits == 0 => ValueCoding::F16,
            3 => ValueCoding::Graded(step),
            _ => return Err(bad("value coding", unknown())),
        };
        let statistics = match statistics {
            1 => StatisticsCoding::Exact,
            2 => StatisticsCoding::Fixed,
            other => return Err(bad("statistics", format!("unknown code {other}"))),
        };
        if !coding.is_valid() {
            return Err(bad("value coding", unknown()));
        }
        let layers = (state_coding >> LAYERS_SHIFT) + 1;
        let coding_code = state_coding & ((1 << LAYERS_SHIFT) - 1);
        let fits = (layers == 1 || kind == 4) && rank.is_multiple_of(layers.into());
        let state = match (kind, coding_code, rank) {
            (0, 0, 0) if layers == 1 => None,
            (2..=4, 1 | 2, 1..) if fits => Some(StateShape {
                kind: match kind {
                    2 => StateKind::Exact,
                    3 => StateKind::Sketch,
                    _ => StateKind::Hidden,
                },
                coding: if coding_code == 1 {
                    StateCoding::F16
                } else {
                    StateCoding::I8
                },
                rank,
                layers,
            }),
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
            statistics,
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
            coded_bytes,
            view_bytes,
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
