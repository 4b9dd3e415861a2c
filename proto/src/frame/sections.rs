//! Provides the sections that are stored as planes: target mask, text, exact statistics and state.

use half::f16;

use super::{
    header::{Header, StateShape},
    planes::{Reader, write_planes},
    values,
};
use crate::{
    Error, Result, Rows, State, View,
    block::{StateCoding, byte_scale, scaled_byte},
    numbers::low_half,
};

pub(super) fn write_mask(out: &mut Vec<u8>, mask: &[bool]) {
    let bytes = mask.chunks(8).map(|flags| {
        let bits = flags.iter().enumerate();
        bits.fold(0, |byte, (bit, &flag)| byte | (u8::from(flag) << bit))
    });
    out.extend(bytes);
}

pub(super) fn read_mask(reader: &mut Reader<'_>, header: &Header) -> Result<Vec<bool>> {
    let tokens = header.tokens as usize;
    let bits = reader.take("target mask", tokens.div_ceil(8))?;
    let flags = bits
        .iter()
        .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
    let invalid = |reason| Error::Invalid {
        index: header.index,
        what: "target mask",
        reason,
    };
    if flags.clone().skip(tokens).any(|flag| flag) {
        return Err(invalid("bits are set after the last token".into()));
    }
    let mask: Vec<bool> = flags.take(tokens).collect();
    let targets = mask.iter().filter(|&&target| target).count();
    if targets == header.rows as usize {
        return Ok(mask);
    }
    Err(invalid(format!(
        "{targets} targets for {} rows",
        header.rows
    )))
}

pub(super) fn read_text(reader: &mut Reader<'_>, header: &Header) -> Result<String> {
    let text = reader.take("text", header.text_bytes as usize)?.to_vec();
    String::from_utf8(text).map_err(|e| Error::Invalid {
        index: header.index,
        what: "text",
        reason: e.to_string(),
    })
}

pub(super) fn read_view(reader: &mut Reader<'_>, header: &Header) -> Result<Option<View>> {
    if header.view_bytes == 0 {
        return Ok(None);
    }
    let bytes = reader.take("view", header.view_bytes as usize)?;
    let unreadable = || Error::Invalid {
        index: header.index,
        what: "view",
        reason: "its lengths do not add up, or a text is not UTF-8".into(),
    };
    View::from_bytes(bytes).ok_or_else(unreadable).map(Some)
}

/// Statistics as they are; the rows' columns are the kept mass and theirs.
pub(super) fn write_statistics(out: &mut Vec<u8>, rows: &Rows) {
    let mass = values::kept_mass(rows);
    let columns = [&rows.max, &rows.mean, &rows.std, &mass];
    for column in columns.into_iter().chain(&rows.logsumexp) {
        write_planes(out, column.iter().map(|value| value.to_bits()), 4);
    }
}

/// What [`write_statistics`] wrote.
pub(super) struct Statistics {
    pub max: Vec<f32>,
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    pub mass: Vec<f32>,
    pub logsumexp: Vec<Vec<f32>>,
}

pub(super) fn read_statistics(reader: &mut Reader<'_>, header: &Header) -> Result<Statistics> {
    let count = header.rows as usize;
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
    let columns = header.temperatures.iter();
    let logsumexp = columns.map(|_| reader.floats("logsumexp", count));
    Ok(Statistics {
        max,
        mean,
        std,
        mass,
        logsumexp: logsumexp.collect::<Result<_>>()?,
    })
}

pub(super) fn write_state(out: &mut Vec<u8>, state: &State) {
    if state.coding == StateCoding::F16 {
        let halves = state
            .values
            .iter()
            .map(|&value| u32::from(f16::from_f32(value).to_bits()));
        return write_planes(out, halves, 2);
    }
    // A layer of a row has its own scale: the residual stream grows by orders of magnitude.
    let rows = state.values.chunks_exact(state.layer_rank().max(1));
    let scales = rows.clone().map(byte_scale);
    write_planes(out, scales.clone().map(|(scale, _)| scale.to_bits()), 4);
    for (row, (_, inverse)) in rows.zip(scales) {
        let bytes = row
            .iter()
            .map(|&value| scaled_byte(value, inverse).cast_unsigned());
        out.extend(bytes);
    }
}

pub(super) fn read_state(reader: &mut Reader<'_>, header: &Header) -> Result<Option<State>> {
    let Some(StateShape {
        kind,
        coding,
        rank,
        layers,
    }) = header.state
    else {
        return Ok(None);
    };
    let (rows, rank, layers) = (header.rows as usize, rank as usize, usize::from(layers));
    let values = match coding {
        StateCoding::F16 => {
            let halves = reader.planes("state", rows * rank, 2)?.into_iter();
            halves
                .map(|bits| f16::from_bits(low_half(bits)).to_f32())
                .collect()
        }
        StateCoding::I8 => {
            let scales = reader.floats("state scales", rows * layers)?;
            let bytes = reader.take("state", rows * rank)?;
            let coded = bytes.chunks_exact((rank / layers).max(1)).zip(scales);
            coded
                .flat_map(|(row, scale)| {
                    row.iter()
                        .map(move |&byte| f32::from(byte.cast_signed()) * scale)
                })
                .collect()
        }
    };
    Ok(Some(State {
        kind,
        coding,
        rank,
        layers,
        values,
    }))
}
