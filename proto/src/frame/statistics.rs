/*! Provides the row statistics in small fixed steps.

All of a row's numbers are relative to one anchor. The kept logits are the anchor minus the distances of their codes, and
`logsumexp` at the first temperature is what gives these logits the stored kept mass: it takes no bytes of its own. The
anchor is the maximum, less the shift by which rounding changed the kept logits' mass, at most half a step.
*/

use super::{
    entropy::{Coder, Number, bit_length, fold, unfold},
    values::{self, Grid, Weights},
};
use crate::{
    Rows,
    numbers::{integer, single},
};

/// Steps a nat of the anchor and of its distance to the mean.
const LEVEL_STEPS: f64 = 64.0;
/// Steps a nat of the logarithm of the standard deviation.
const SPREAD_STEPS: f64 = 256.0;
/// Steps a nat of the kept mass' log odds.
const ODDS_STEPS: f64 = 32.0;
/// Steps a nat of `logsumexp` at the other temperatures.
const OTHER_STEPS: f64 = 4096.0;
/// Levels and the others' distances are below this many steps.
const STEPS_MAX: f64 = (1u32 << 24) as f64;
/// Codes of 0 for the logarithm of the standard deviation and for even odds; f32 has logarithms of ±104.
const SPREAD_ZERO: f64 = 32_768.0;
const ODDS_ZERO: f64 = 2_816.0;
/// Code of a mass of 1, as far as f32 can tell.
const ODDS_ONE: u32 = 3_400;

/// One row's statistics as codes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fixed {
    /// The anchor.
    level: i32,
    /// Anchor minus mean.
    mean: i32,
    /// Logarithm of the standard deviation; 0 where that is 0.
    spread: u32,
    /// Log odds of the kept mass.
    odds: u32,
    /// `logsumexp - anchor / tau` at the temperatures after the first.
    others: Vec<i32>,
}

/// Statistics of one row, decoded.
pub(super) struct Decoded {
    pub max: f32,
    pub mean: f32,
    pub std: f32,
}

/// Every row's statistics as codes; `None` where one of them does not fit, so that the frame has to keep them as they are.
pub(super) fn fixed(rows: &Rows, codes: &[u32], grid: &Grid) -> Option<Vec<Fixed>> {
    let mass = values::kept_mass(rows);
    let weights = grid.weights(rows.temperatures.first().copied().unwrap_or(1.0));
    (0..rows.rows)
        .map(|row| {
            let entries = row * rows.k..(row + 1) * rows.k;
            let counts = rows.counts.get(entries.clone()).unwrap_or_default();
            let codes = kept_codes(rows, codes.get(entries)?, counts);
            let sum = codes.map(|code| weights.weight(code)).sum();
            Fixed::new(rows, row, *mass.get(row)?, sum)
        })
        .collect()
}

/// The codes of a row's entries that are no padding.
fn kept_codes<'a>(
    rows: &'a Rows,
    codes: &'a [u32],
    counts: &'a [u32],
) -> impl Iterator<Item = u32> + 'a {
    let padding = counts.iter().map(|&count| rows.estimator.is_padding(count));
    let entries = codes.iter().zip(padding.chain(std::iter::repeat(false)));
    entries.filter_map(|(&code, padding)| (!padding).then_some(code))
}

impl Fixed {
    /// `sum`: of the kept entries' weights relative to the anchor's.
    fn new(rows: &Rows, row: usize, mass: f32, sum: f64) -> Option<Self> {
        let max = f64::from(*rows.max.get(row)?);
        let std = f64::from(*rows.std.get(row)?);
        let mut fixed = Self::default();
        let mut anchor = max;
        let mut columns = rows.temperatures.iter().zip(&rows.logsumexp);
        if let Some((&tau, column)) = columns.next() {
            let tau = f64::from(tau);
            let mass = f64::from(mass);
            if mass < f64::from(f32::MIN_POSITIVE) {
                return None;
            }
            fixed.odds = match 1.0 - mass {
                rest if rest < 1e-7 => ODDS_ONE,
                rest => step_of((mass / rest).ln() * ODDS_STEPS + ODDS_ZERO),
            };
            let shift = sum.ln() - ln_mass(fixed.odds) - (f64::from(*column.get(row)?) - max / tau);
            anchor -= tau * shift;
            if !anchor.is_finite() {
                return None;
            }
        }
        let steps = |value: f64, steps: f64| {
            let code = (value * steps).round();
            (code.abs() < STEPS_MAX).then_some(integer(code))
        };
        fixed.level = steps(anchor, LEVEL_STEPS)?;
        fixed.mean = steps(anchor - f64::from(*rows.mean.get(row)?), LEVEL_STEPS)?;
        if std > 0.0 {
            fixed.spread = step_of(std.ln() * SPREAD_STEPS + SPREAD_ZERO);
        }
        for (&tau, column) in columns {
            let distance = f64::from(*column.get(row)?) - anchor / f64::from(tau);
            fixed.others.push(steps(distance, OTHER_STEPS)?);
        }
        Some(fixed)
    }

    /// The row's statistics; `logsumexp` has a column for every temperature, which gets one more entry.
    pub fn decode(
        &self,
        weights: &Weights<'_>,
        codes: impl Iterator<Item = u32>,
        temperatures: &[f32],
        logsumexp: &mut [Vec<f32>],
    ) -> Decoded {
        let anchor = f64::from(self.level) / LEVEL_STEPS;
        let mut columns = temperatures.iter().zip(logsumexp);
        if let Some((&tau, column)) = columns.next() {
            let sum: f64 = codes.map(|code| weights.weight(code)).sum();
            column.push(single(
                anchor / f64::from(tau) + sum.ln() - ln_mass(self.odds),
            ));
        }
        for ((&tau, column), &other) in columns.zip(&self.others) {
            column.push(single(
                anchor / f64::from(tau) + f64::from(other) / OTHER_STEPS,
            ));
        }
        let spread = (f64::from(self.spread) - SPREAD_ZERO) / SPREAD_STEPS;
        Decoded {
            max: single(anchor),
            mean: single(anchor - f64::from(self.mean) / LEVEL_STEPS),
            std: if self.spread == 0 {
                0.0
            } else {
                single(spread.exp())
            },
        }
    }
}

/// The nearest step, from 0 on.
fn step_of(steps: f64) -> u32 {
    integer(steps.round()).max(0).cast_unsigned()
}

/// Logarithm of the mass with these odds.
fn ln_mass(odds: u32) -> f64 {
    match odds {
        ODDS_ONE.. => 0.0,
        _ => -(-(f64::from(odds) - ODDS_ZERO) / ODDS_STEPS).exp().ln_1p(),
    }
}

/// Models of statistics: each number as its change since the row before.
#[derive(Debug)]
pub(super) struct StatisticsModel {
    before: Fixed,
    level: Number,
    mean: Number,
    spread: Number,
    odds: Number,
    others: Number,
}

impl StatisticsModel {
    pub fn new(temperatures: usize) -> Self {
        Self {
            before: Fixed {
                others: vec![0; temperatures.saturating_sub(1)],
                ..Fixed::default()
            },
            level: Number::new(16, 1),
            mean: Number::new(16, 1),
            spread: Number::new(1, 1),
            odds: Number::new(18, 1),
            others: Number::new(16, 1),
        }
    }

    /// Codes a row's statistics. `largest` is the row's largest code.
    pub fn code<C: Coder>(&mut self, coder: &mut C, largest: u32, row: Option<&Fixed>) -> &Fixed {
        let blank = Fixed::default();
        let (row, before) = (row.unwrap_or(&blank), &mut self.before);
        let change = |model: &mut Number, coder: &mut C, context, before: i32, now: i32| {
            let change = model.code(coder, context, 0, || fold(now.wrapping_sub(before)));
            before.wrapping_add(unfold(change))
        };
        before.level = change(&mut self.level, coder, 0, before.level, row.level);
        before.mean = change(&mut self.mean, coder, 0, before.mean, row.mean);
        let spread = change(
            &mut self.spread,
            coder,
            0,
            before.spread.cast_signed(),
            row.spread.cast_signed(),
        );
        before.spread = spread.cast_unsigned();
        let context = bit_length(largest).min(17) as usize;
        let odds = change(
            &mut self.odds,
            coder,
            context,
            before.odds.cast_signed(),
            row.odds.cast_signed(),
        );
        before.odds = odds.cast_unsigned();
        for (place, other) in before.others.iter_mut().enumerate() {
            let now = row.others.get(place).copied().unwrap_or_default();
            *other = change(&mut self.others, coder, place.min(15), *other, now);
        }
        before
    }
}
