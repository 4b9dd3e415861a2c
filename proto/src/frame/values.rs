//! Provides the coding of kept logits: distance to the row's maximum, and the mass kept entries had before it.

use half::f16;

use crate::{Rows, ValueCoding};

/// Largest distance code; logits further below the maximum saturate (8,192 nats at 1/8).
const CODE_MAX: f32 = 65_535.0;

/// `max - logit` as integer codes, row-major, with the bytes one needs.
pub(super) fn encode(rows: &Rows) -> (Vec<u32>, u8) {
    let row_of = rows.logits.chunks_exact(rows.k.max(1)).zip(&rows.max);
    let codes: Vec<u32> = row_of
        .flat_map(|(logits, max)| logits.iter().map(move |logit| (max - logit).max(0.0)))
        .map(|distance| match rows.coding {
            ValueCoding::Step(step) => (distance / step).round().min(CODE_MAX) as u32,
            ValueCoding::F16 => u32::from(f16::from_f32(distance.min(f16::MAX.to_f32())).to_bits()),
        })
        .collect();
    let narrow =
        matches!(rows.coding, ValueCoding::Step(_)) && codes.iter().all(|&code| code <= 255);
    (codes, if narrow { 1 } else { 2 })
}

/// Probability mass of every row's kept entries at the first stored temperature; 0 where none is stored.
pub(super) fn kept_mass(rows: &Rows) -> Vec<f32> {
    let (Some(&tau), Some(logsumexp)) = (rows.temperatures.first(), rows.logsumexp.first()) else {
        return vec![0.0; rows.rows];
    };
    let row_of = rows.logits.chunks_exact(rows.k.max(1)).zip(logsumexp);
    row_of
        .enumerate()
        .map(|(row, (logits, lse))| mass_of(rows, row, logits, tau, *lse).min(1.0) as f32)
        .collect()
}

/// Logits from codes, shifted per row so that they carry `mass` again: a rounded logit would else take mass from the
/// tail, which goes negative in one row of eleven.
///
/// At the other stored temperatures the same shift leaves an error of second order in the step, so a tail there must be
/// kept from going below zero by its reader.
pub(super) fn decode(codes: &[u32], rows: &mut Rows, mass: &[f32]) {
    let mut decoded = Vec::with_capacity(codes.len());
    let row_of = codes.chunks_exact(rows.k.max(1)).zip(&rows.max).zip(mass);
    for (row, ((codes, max), mass)) in row_of.enumerate() {
        let start = decoded.len();
        decoded.extend(codes.iter().map(|&code| match rows.coding {
            ValueCoding::Step(step) => max - code as f32 * step,
            ValueCoding::F16 => max - f16::from_bits(code as u16).to_f32(),
        }));
        if let Some(logits) = decoded.get_mut(start..) {
            restore_mass(logits, rows, row, *mass);
        }
    }
    rows.logits = decoded;
}

fn restore_mass(logits: &mut [f32], rows: &Rows, row: usize, mass: f32) {
    let column = rows.logsumexp.first().and_then(|column| column.get(row));
    let (Some(&tau), Some(&lse)) = (rows.temperatures.first(), column) else {
        return;
    };
    let found = mass_of(rows, row, logits, tau, lse);
    // Below f32's normal range the stored mass has lost its digits, and there is nothing that a tail could miss.
    if !mass.is_normal() {
        return;
    }
    let shift = f64::from(tau) * (f64::from(mass) / found).ln();
    if shift.is_finite() {
        for logit in logits {
            *logit = (f64::from(*logit) + shift) as f32;
        }
    }
}

/// `sum exp(y / tau - logsumexp)` over the entries of one row that are no padding; `logits` are the row's, before or
/// after rounding.
///
/// For drawn rows this is the mass of the distinct ids, not of their counts: it undoes what rounding did to the stored
/// logits and says nothing about the estimate.
fn mass_of(rows: &Rows, row: usize, logits: &[f32], tau: f32, lse: f32) -> f64 {
    let (tau, lse) = (f64::from(tau), f64::from(lse));
    // Top-k rows have no counts: every entry counts.
    let counts = rows.counts.chunks_exact(rows.k.max(1)).nth(row);
    let counts = counts.unwrap_or_default().iter();
    let padding = counts.map(|&count| rows.estimator.is_padding(count));
    let entries = logits.iter().zip(padding.chain(std::iter::repeat(false)));
    entries
        .filter(|(_, padding)| !padding)
        .map(|(&logit, _)| (f64::from(logit) / tau - lse).exp())
        .sum()
}
