//! Provides the reading of version 1's body, whose sections are all byte planes.

use super::{
    Frame,
    header::Header,
    planes::Reader,
    sections,
    values::{self, Grid},
};
use crate::{Error, Estimator, Result, Rows};

pub(super) fn read(body: &[u8], header: &Header, value_bytes: u8) -> Result<Frame> {
    let mut reader = Reader::new(body, header.index);
    let tokens = header.tokens as usize;
    let token_ids = reader.planes("token ids", tokens, 4)?;
    let gaps = reader.planes("offset gaps", tokens, 4)?;
    let lengths = reader.planes("offset lengths", tokens, 4)?;
    let mut before = 0u32;
    let byte_offsets = gaps.iter().zip(&lengths).map(|(gap, length)| {
        let start = before.wrapping_add(*gap);
        before = start.wrapping_add(*length);
        (start, before)
    });
    let byte_offsets = byte_offsets.collect();
    let target_mask = sections::read_mask(&mut reader, header)?;
    let text = sections::read_text(&mut reader, header)?;
    let rows = read_rows(&mut reader, header, value_bytes)?;
    Ok(Frame {
        sequence_id: header.sequence_id,
        index: header.index,
        text_digest: header.text_digest,
        text,
        token_ids,
        byte_offsets,
        target_mask,
        rows,
    })
}

fn read_rows(reader: &mut Reader<'_>, header: &Header, value_bytes: u8) -> Result<Rows> {
    let (count, k) = (header.rows as usize, header.k as usize);
    let mut ids = reader.planes("ids", count * k, 3)?;
    for row in ids.chunks_exact_mut(k.max(1)) {
        let mut before = 0u32;
        for id in row {
            *id = id.wrapping_add(before);
            before = id.wrapping_add(1);
        }
    }
    let codes = reader.planes("values", count * k, value_bytes.into())?;
    if codes
        .iter()
        .any(|&code| code > Grid::code_max(header.coding))
    {
        return Err(Error::Invalid {
            index: header.index,
            what: "values",
            reason: "a distance to the row's maximum is negative or no number".into(),
        });
    }
    let counts = match header.estimator {
        Estimator::TopK => Vec::new(),
        _ => reader.planes("counts", count * k, 4)?,
    };
    let statistics = sections::read_statistics(reader, header)?;
    let mut rows = Rows {
        rows: count,
        k,
        vocab_size: header.vocab_size,
        estimator: header.estimator,
        coding: header.coding,
        ids,
        logits: Vec::new(),
        counts,
        max: statistics.max,
        mean: statistics.mean,
        std: statistics.std,
        temperatures: header.temperatures.clone(),
        logsumexp: statistics.logsumexp,
        state: sections::read_state(reader, header)?,
    };
    values::decode(
        &codes,
        &Grid::new(header.coding),
        &mut rows,
        &statistics.mass,
    );
    Ok(rows)
}
