//! Provides the coding of kept logits as distances to the row's maximum, and the mass that kept entries had before it.

use half::f16;

use crate::{
    Rows, ValueCoding,
    numbers::{low_half, narrow, natural, single},
};

/// Largest code; logits further below the maximum saturate (8,192 nats at 1/8).
pub(super) const CODE_MAX: u32 = 65_535;
/// Nats after which graded steps double.
const OCTAVE_NATS: f32 = 2.0;
/// Distances of uniform steps and half precision that are kept at hand.
const TABLE_CODES: u32 = 512;

/// The distances that a value coding can tell apart.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    coding: ValueCoding,
    /// Distances of the first codes; all graded steps below 1 nat are among them.
    distances: Vec<f32>,
}

impl Grid {
    pub fn new(coding: ValueCoding) -> Self {
        let mut distances = Vec::new();
        match coding {
            ValueCoding::Graded(first) => {
                let (mut distance, mut step) = (0f32, first);
                while step < 1.0 {
                    distances.push(distance);
                    distance += step;
                    // Sums of multiples of 2^-10 are exact, and so is this.
                    step = (first * (distance / OCTAVE_NATS).floor().exp2()).min(1.0);
                }
                // The rest is beyond the table.
                distances.push(distance);
            }
            _ => distances.extend((0..TABLE_CODES).map(|code| plain_distance(coding, code))),
        }
        Self { coding, distances }
    }

    /// The largest code that stands for a distance; the halves after it are infinite or negative.
    pub fn code_max(coding: ValueCoding) -> u32 {
        match coding {
            ValueCoding::F16 => f16::MAX.to_bits().into(),
            _ => CODE_MAX,
        }
    }

    /// The distance of a code, nats.
    #[inline]
    pub fn distance(&self, code: u32) -> f32 {
        match self.distances.get(code as usize) {
            Some(&distance) => distance,
            None => self.far_distance(code),
        }
    }

    fn far_distance(&self, code: u32) -> f32 {
        match (self.coding, self.distances.last()) {
            (ValueCoding::Graded(_), Some(last)) => {
                last + (code as usize + 1 - self.distances.len()) as f32
            }
            (coding, _) => plain_distance(coding, code),
        }
    }

    /// The code of the nearest distance.
    pub fn code(&self, distance: f32) -> u32 {
        match self.coding {
            ValueCoding::Step(step) => natural((distance / step).round().min(CODE_MAX as f32)),
            ValueCoding::F16 => f16::from_f32(distance.min(f16::MAX.to_f32()))
                .to_bits()
                .into(),
            ValueCoding::Graded(_) => {
                let above = self.distances.partition_point(|&point| point <= distance);
                let below = narrow(above.saturating_sub(1));
                let start = self.distance(below);
                if above == self.distances.len() {
                    below + natural((distance - start).round().min((CODE_MAX - below) as f32))
                } else {
                    below + u32::from(distance - start > self.distance(below + 1) - distance)
                }
            }
        }
    }

    /// `exp(-distance / tau)` of the first codes.
    pub fn weights(&self, tau: f32) -> Weights<'_> {
        let weights = self.distances.iter().map(|&distance| weight(distance, tau));
        Weights {
            grid: self,
            tau,
            weights: weights.collect(),
        }
    }
}

fn plain_distance(coding: ValueCoding, code: u32) -> f32 {
    match coding {
        ValueCoding::Step(step) | ValueCoding::Graded(step) => code as f32 * step,
        ValueCoding::F16 => f16::from_bits(low_half(code)).to_f32(),
    }
}

/// Probabilities of a grid's distances, relative to the maximum's.
pub(super) struct Weights<'a> {
    grid: &'a Grid,
    tau: f32,
    weights: Vec<f64>,
}

impl Weights<'_> {
    #[inline]
    pub fn weight(&self, code: u32) -> f64 {
        match self.weights.get(code as usize) {
            Some(&weight) => weight,
            None => weight(self.grid.distance(code), self.tau),
        }
    }
}

fn weight(distance: f32, tau: f32) -> f64 {
    (-f64::from(distance) / f64::from(tau)).exp()
}

/// `max - logit` as codes, row-major.
pub(super) fn encode(rows: &Rows, grid: &Grid) -> Vec<u32> {
    let row_of = rows.logits.chunks_exact(rows.k.max(1)).zip(&rows.max);
    row_of
        .flat_map(|(logits, max)| logits.iter().map(move |logit| (max - logit).max(0.0)))
        .map(|distance| grid.code(distance))
        .collect()
}

/// Probability mass of every row's kept entries at the first stored temperature; 0 where none is stored.
pub(super) fn kept_mass(rows: &Rows) -> Vec<f32> {
    let (Some(&tau), Some(logsumexp)) = (rows.temperatures.first(), rows.logsumexp.first()) else {
        return vec![0.0; rows.rows];
    };
    let row_of = rows.logits.chunks_exact(rows.k.max(1)).zip(logsumexp);
    row_of
        .enumerate()
        .map(|(row, (logits, lse))| single(mass_of(rows, row, logits, tau, *lse).min(1.0)))
        .collect()
}

/// Logits from codes, shifted per row so that they carry `mass` again: a rounded logit would else take mass from the
/// tail, which goes negative in one row of eleven.
///
/// At the other stored temperatures the same shift leaves an error of second order in the step, so a tail there must be
/// kept from going below zero by its reader.
pub(super) fn decode(codes: &[u32], grid: &Grid, rows: &mut Rows, mass: &[f32]) {
    let mut decoded = Vec::with_capacity(codes.len());
    let row_of = codes.chunks_exact(rows.k.max(1)).zip(&rows.max).zip(mass);
    for (row, ((codes, max), mass)) in row_of.enumerate() {
        let start = decoded.len();
        decoded.extend(codes.iter().map(|&code| max - grid.distance(code)));
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
            *logit = single(f64::from(*logit) + shift);
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
