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
    let mut mass = Vec::with_capacity(rows.rows);
    for (logits, lse) in rows.logits.chunks_exact(rows.k.max(1)).zip(logsumexp) {
        mass.push(mass_of(logits, tau, *lse).min(1.0) as f32);
    }
    mass.resize(rows.rows, 0.0);
    mass
}

/// Logits from codes, shifted per row so that they carry `mass` again: a rounded logit would else take mass from the
/// tail, which goes negative in one row of eleven.
pub(super) fn decode(codes: &[u32], rows: &mut Rows, mass: &[f32]) {
    let k = rows.k.max(1);
    let reference = rows
        .temperatures
        .first()
        .copied()
        .zip(rows.logsumexp.first());
    rows.logits = Vec::with_capacity(codes.len());
    for (row, (codes, max)) in codes.chunks_exact(k).zip(&rows.max).enumerate() {
        let mut logits: Vec<f32> = codes
            .iter()
            .map(|&code| match rows.coding {
                ValueCoding::Step(step) => max - code as f32 * step,
                ValueCoding::F16 => max - f16::from_bits(code as u16).to_f32(),
            })
            .collect();
        if let (Some((tau, lse)), Some(&mass)) = (reference, mass.get(row))
            && let Some(&lse) = lse.get(row)
            && mass > 0.0
        {
            let shift = f64::from(tau) * (f64::from(mass) / mass_of(&logits, tau, lse)).ln();
            if shift.is_finite() {
                logits
                    .iter_mut()
                    .for_each(|logit| *logit = (f64::from(*logit) + shift) as f32);
            }
        }
        rows.logits.extend(logits);
    }
}

fn mass_of(logits: &[f32], tau: f32, lse: f32) -> f64 {
    let (tau, lse) = (f64::from(tau), f64::from(lse));
    logits
        .iter()
        .map(|&logit| (f64::from(logit) / tau - lse).exp())
        .sum()
}
