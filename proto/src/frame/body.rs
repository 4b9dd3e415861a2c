//! Provides the body of a frame: planes for zstd, and tokens and rows in entropy coding.

use super::{
    Frame,
    entropy::Encoder,
    header::{Header, StatisticsCoding},
    planes::Reader,
    rows, sections,
    statistics::{self, Fixed},
    values::{self, Grid},
};
use crate::{Result, Rows, ValueCoding};

/// A frame's numbers as codes.
pub(super) struct Codes {
    pub values: Vec<u32>,
    /// Statistics of every row; none where they are stored exactly.
    fixed: Vec<Fixed>,
}

impl Codes {
    pub fn of(rows: &Rows) -> Self {
        let grid = Grid::new(rows.coding);
        let values = values::encode(rows, &grid);
        // Whoever asks for half precision wants exact numbers.
        let fixed = match rows.coding {
            ValueCoding::F16 => None,
            _ => statistics::fixed(rows, &values, &grid),
        };
        Self {
            values,
            fixed: fixed.unwrap_or_default(),
        }
    }

    pub fn statistics(&self) -> StatisticsCoding {
        if self.fixed.is_empty() {
            StatisticsCoding::Exact
        } else {
            StatisticsCoding::Fixed
        }
    }
}

/// The planes, for zstd.
pub(super) fn planes(frame: &Frame, view: &[u8], codes: &Codes) -> Vec<u8> {
    let mut out = Vec::new();
    sections::write_mask(&mut out, &frame.target_mask);
    out.extend(frame.text.as_bytes());
    out.extend(view);
    if codes.statistics() == StatisticsCoding::Exact {
        sections::write_statistics(&mut out, &frame.rows);
    }
    if let Some(state) = &frame.rows.state {
        sections::write_state(&mut out, state);
    }
    out
}

/// The coded part.
pub(super) fn coded(frame: &Frame, header: &Header, codes: &Codes) -> Vec<u8> {
    let mut encoder = Encoder::default();
    rows::encode(&mut encoder, frame, header, &codes.values, &codes.fixed);
    encoder.finish()
}

pub(super) fn read(planes: &[u8], coded: &[u8], header: &Header) -> Result<Frame> {
    let mut reader = Reader::new(planes, header.index);
    let target_mask = sections::read_mask(&mut reader, header)?;
    let text = sections::read_text(&mut reader, header)?;
    let view = sections::read_view(&mut reader, header)?;
    let exact = match header.statistics {
        StatisticsCoding::Exact => Some(sections::read_statistics(&mut reader, header)?),
        StatisticsCoding::Fixed => None,
    };
    let state = sections::read_state(&mut reader, header)?;
    let grid = Grid::new(header.coding);
    let coded = rows::decode(coded, header, &target_mask, &grid)?;
    let k = header.k as usize;
    let mut rows = Rows {
        rows: header.rows as usize,
        k,
        vocab_size: header.vocab_size,
        estimator: header.estimator,
        coding: header.coding,
        ids: coded.ids,
        logits: Vec::new(),
        counts: coded.counts,
        max: coded.max,
        mean: coded.mean,
        std: coded.std,
        temperatures: header.temperatures.clone(),
        logsumexp: coded.logsumexp,
        state,
    };
    match exact {
        Some(exact) => {
            (rows.max, rows.mean, rows.std) = (exact.max, exact.mean, exact.std);
            rows.logsumexp = exact.logsumexp;
            values::decode(&coded.codes, &grid, &mut rows, &exact.mass);
        }
        // logsumexp is already the one that goes with these logits.
        None => {
            rows.logits.reserve_exact(coded.codes.len());
            for (codes, max) in coded.codes.chunks_exact(k.max(1)).zip(&rows.max) {
                let logits = codes.iter().map(|&code| max - grid.distance(code));
                rows.logits.extend(logits);
            }
        }
    }
    Ok(Frame {
        sequence_id: header.sequence_id,
        index: header.index,
        text_digest: header.text_digest,
        text,
        token_ids: coded.token_ids,
        byte_offsets: coded.byte_offsets,
        target_mask,
        rows,
        view,
    })
}
