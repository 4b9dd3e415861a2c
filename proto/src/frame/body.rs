//! Provides the uncompressed body of a frame: its sections in the order of FORMAT.md.

use half::f16;

use super::{
    Frame,
    header::Header,
    planes::{Reader, write_planes},
    values,
};
use crate::{
    Error, Estimator, Result, Rows, State,
    block::{StateCoding, byte_scale, scaled_byte},
};

pub(super) fn write(frame: &Frame, codes: &[u32], value_bytes: u8) -> Result<Vec<u8>> {
    let rows = &frame.rows;
    let mut out = Vec::new();
    write_planes(&mut out, frame.token_ids.iter().copied(), 4);
    let ends = std::iter::once(0).chain(frame.byte_offsets.iter().map(|offset| offset.1));
    let gaps = frame
        .byte_offsets
        .iter()
        .zip(ends)
        .map(|(offset, before)| offset.0.wrapping_sub(before));
    write_planes(&mut out, gaps, 4);
    write_planes(
        &mut out,
        frame
            .byte_offsets
            .iter()
            .map(|(start, end)| end.wrapping_sub(*start)),
        4,
    );
    for flags in frame.target_mask.chunks(8) {
        out.push(
            flags
                .iter()
                .enumerate()
                .fold(0, |byte, (bit, &flag)| byte | (u8::from(flag) << bit)),
        );
    }
    out.extend(frame.text.as_bytes());

    let gaps = rows.ids.chunks_exact(rows.k.max(1)).flat_map(|ids| {
        let before = std::iter::once(0).chain(ids.iter().map(|id| id + 1));
        ids.iter().zip(before).map(|(id, before)| id - before)
    });
    write_planes(&mut out, gaps, 3);
    write_planes(&mut out, codes.iter().copied(), value_bytes.into());
    if rows.estimator != Estimator::TopK {
        write_planes(&mut out, rows.counts.iter().copied(), 4);
    }
    let mass = values::kept_mass(rows);
    for column in [&rows.max, &rows.mean, &rows.std, &mass]
        .into_iter()
        .chain(&rows.logsumexp)
    {
        write_planes(&mut out, column.iter().map(|value| value.to_bits()), 4);
    }
    if let Some(state) = &rows.state {
        write_state(&mut out, state);
    }
    Ok(out)
}

fn write_state(out: &mut Vec<u8>, state: &State) {
    if state.coding == StateCoding::F16 {
        let halves = state
            .values
            .iter()
            .map(|&value| u32::from(f16::from_f32(value).to_bits()));
        return write_planes(out, halves, 2);
    }
    let rows = state.values.chunks_exact(state.rank.max(1));
    let scales = rows.clone().map(byte_scale);
    write_planes(out, scales.clone().map(|(scale, _)| scale.to_bits()), 4);
    for (row, (_, inverse)) in rows.zip(scales) {
        out.extend(
            row.iter()
                .map(|&value| scaled_byte(value, inverse).cast_unsigned()),
        );
    }
}

pub(super) fn read(body: &[u8], header: &Header) -> Result<Frame> {
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
    let bits = reader.take("target mask", tokens.div_ceil(8))?;
    let flags = bits
        .iter()
        .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
    let target_mask: Vec<bool> = flags.clone().take(tokens).collect();
    let invalid = |what, reason: String| Error::Invalid {
        index: header.index,
        what,
        reason,
    };
    if flags.skip(tokens).any(|flag| flag) {
        return Err(invalid(
            "target mask",
            "bits are set after the last token".into(),
        ));
    }
    let text = reader.take("text", header.text_bytes as usize)?.to_vec();
    let text = String::from_utf8(text).map_err(|e| invalid("text", e.to_string()))?;
    let rows = read_rows(&mut reader, header)?;
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

fn read_rows(reader: &mut Reader<'_>, header: &Header) -> Result<Rows> {
    let (count, k) = (header.rows as usize, header.k as usize);
    let mut ids = reader.planes("ids", count * k, 3)?;
    for row in ids.chunks_exact_mut(k.max(1)) {
        let mut before = 0u32;
        for id in row {
            *id = id.wrapping_add(before);
            before = id.wrapping_add(1);
        }
    }
    let codes = reader.planes("values", count * k, header.value_bytes.into())?;
    let counts = match header.estimator {
        Estimator::TopK => Vec::new(),
        _ => reader.planes("counts", count * k, 4)?,
    };
    let max = reader.floats("max", count)?;
    let mean = reader.floats("mean", count)?;
    let std = reader.floats("std", count)?;
    let mass = reader.floats("kept mass", count)?;
    if !mass.iter().all(|mass| (0.0..=1.0).contains(mass)) {
        return Err(Error::Invalid {
            index: header.index,
            what: "kept mass",
            reason: "not from 0 to 1".into(),
        });
    }
    let logsumexp = header
        .temperatures
        .iter()
        .map(|_| reader.floats("logsumexp", count))
        .collect::<Result<_>>()?;
    let state = match header.state {
        None => None,
        Some((kind, coding, rank)) => {
            let rank = rank as usize;
            Some(State {
                kind,
                coding,
                rank,
                values: read_state(reader, coding, count, rank)?,
            })
        }
    };
    let mut rows = Rows {
        rows: count,
        k,
        vocab_size: header.vocab_size,
        estimator: header.estimator,
        coding: header.coding,
        ids,
        logits: Vec::new(),
        counts,
        max,
        mean,
        std,
        temperatures: header.temperatures.clone(),
        logsumexp,
        state,
    };
    values::decode(&codes, &mut rows, &mass);
    Ok(rows)
}

fn read_state(
    reader: &mut Reader<'_>,
    coding: StateCoding,
    rows: usize,
    rank: usize,
) -> Result<Vec<f32>> {
    if coding == StateCoding::F16 {
        let halves = reader.planes("state", rows * rank, 2)?;
        return Ok(halves
            .into_iter()
            .map(|bits| f16::from_bits(bits as u16).to_f32())
            .collect());
    }
    let scales = reader.floats("state scales", rows)?;
    let bytes = reader.take("state", rows * rank)?;
    let coded = bytes.chunks_exact(rank.max(1)).zip(scales);
    Ok(coded
        .flat_map(|(row, scale)| row.iter().map(move |&byte| f32::from(byte as i8) * scale))
        .collect())
}
